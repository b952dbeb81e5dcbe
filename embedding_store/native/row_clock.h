// A row's time of last touch in 16 bits, so that its header stays at 16 bytes.
//
// A tick is the table's longest time-to-live / 2^15, at least a microsecond: that is how much too late a
// row may expire, and never too early. Ages are differences modulo 2^16. They stay unambiguous because
// a sweep comes to every row once in kLapTicksMax and takes ages over kAgeMax for kAgeMax, and because a leap
// of event time that is longer than that is preceded by a sweep of the whole table.
//
// A table without a time-to-live that evicts the least recent rows counts its touches instead of event
// time: one tick for a thousandth of its rows touched, so the order is as fine at any speed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

namespace cuckooflow {

class RowClock {
 public:
  static constexpr int64_t kAgeMax = 47 << 10;
  static constexpr int64_t kLapTicksMax = 1 << 13;
  static_assert(kAgeMax > (1 << 15) + 1, "the longest time-to-live is told from any longer age");
  static_assert(kAgeMax + 2 * kLapTicksMax < 1 << 16, "between two visits no age wraps");

  // `ttl_us`: one for all slots, or one a slot; 0 for never.
  RowClock(const std::vector<int64_t>& ttl_us, bool counts_touches) {
    int64_t longest = 0;
    int64_t shortest = std::numeric_limits<int64_t>::max();
    for (const int64_t ttl : ttl_us) {
      longest = std::max(longest, ttl);
      if (ttl > 0) shortest = std::min(shortest, ttl);
    }
    expires_ = longest > 0;
    counts_ = !expires_ && counts_touches;
    unit_us_ = std::max<int64_t>(1, (longest + (1 << 15) - 1) >> 15);
    if (expires_) lap_ticks_ = std::clamp<int64_t>(shortest / unit_us_ / 4, 1, lap_ticks_);
    for (const int64_t ttl : ttl_us)
      limits_.push_back(ttl > 0 ? (ttl + unit_us_ - 1) / unit_us_ + 1 : kNever);
  }

  bool runs() const { return expires_ || counts_; }
  bool expires() const { return expires_; }
  bool started() const { return started_; }
  int64_t now() const { return now_; }
  // In how many ticks a sweep should come to every row: a quarter of the shortest time-to-live.
  int64_t lap_ticks() const { return lap_ticks_; }

  // Where a push takes the clock, given how many rows were touched since it last moved.
  int64_t after_push(int64_t event_time_us, uint64_t rows, uint64_t* touched) const {
    if (expires_) return started_ ? std::max(now_, tick_of(event_time_us)) : tick_of(event_time_us);
    const uint64_t rows_a_tick = rows / 1024 + 1;
    const uint64_t ticks = std::min<uint64_t>(*touched / rows_a_tick, 1024);
    *touched -= ticks * rows_a_tick;
    return now_ + static_cast<int64_t>(ticks);
  }
  void set(int64_t now) {
    now_ = now;
    started_ = true;
  }

  // What a row's header shall hold that is touched at this event time; an older one is taken for kAgeMax.
  uint16_t stamp(int64_t event_time_us) const {
    if (counts_) return static_cast<uint16_t>(now_);
    return static_cast<uint16_t>(now_ - std::clamp<int64_t>(now_ - tick_of(event_time_us), 0, kAgeMax));
  }
  int64_t age(uint16_t stamp) const { return age_at(now_, stamp); }
  static int64_t age_at(int64_t now, uint16_t stamp) {
    return static_cast<uint16_t>(static_cast<uint16_t>(now) - stamp);
  }
  bool expired(int64_t age, uint32_t slot) const { return age >= limits_[limits_.size() == 1 ? 0 : slot]; }

 private:
  static constexpr int64_t kTimeMax = int64_t{1} << 61;  // differences of two times do not overflow
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

  int64_t tick_of(int64_t us) const {
    us = std::clamp(us, -kTimeMax, kTimeMax);
    const int64_t tick = us / unit_us_;
    return tick - (us % unit_us_ < 0);
  }

  bool expires_ = false;
  bool counts_ = false;
  bool started_ = false;
  int64_t now_ = 0;
  int64_t unit_us_ = 1;
  int64_t lap_ticks_ = kLapTicksMax / 2;
  std::vector<int64_t> limits_;  // ages in ticks at which the time-to-live is surely over
};

}  // namespace cuckooflow
