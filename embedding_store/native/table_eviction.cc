// How rows of a table go away: by their time-to-live, and for room under a memory limit.
#include "table.h"

namespace cuckooflow {

namespace {

// Rows that the sweep comes to with every push: at least and at most. The most takes about a millisecond.
constexpr uint64_t kSweepMin = 64;
constexpr uint64_t kSweepMax = 8192;
// Of this many rows, drawn all over the slab, the one that was touched longest ago is evicted for a new one.
// Rows beside each other would do worse: they are often as old as each other.
constexpr int kSample = 16;

}  // namespace

void Table::begin_push(int64_t event_time_us, uint32_t epoch) {
  if (!clock_.runs()) return;
  const int64_t to = clock_.after_push(event_time_us, slab_.used_rows(), &touches_);
  const int64_t ahead = to - clock_.now();
  if (!clock_.started()) {
    lap_began_ = to;
  } else if (to - lap_began_ > RowClock::kLapTicksMax) {
    sweep(0, slab_.size(), to, epoch);
    hand_ = 0;
    sweep_credit_ = 0;
    lap_began_ = to;
  } else {
    sweep_credit_ += slab_.size() * static_cast<uint64_t>(ahead) / clock_.lap_ticks() + (ahead > 0);
    sweep_credit_ = std::min<uint64_t>(sweep_credit_, slab_.size());
  }
  clock_.set(to);
  stamp_ = clock_.stamp(event_time_us);
}

void Table::end_push(uint32_t epoch) {
  if (clock_.runs()) sweep_on(epoch);
  bound_backlog();
}

uint64_t Table::evict_expired(uint32_t first, uint32_t n, uint32_t epoch) {
  if (!clock_.expires()) return 0;
  const uint64_t evicted = sweep(first, n, clock_.now(), epoch);
  bound_backlog();
  return evicted;
}

void Table::sweep_on(uint32_t epoch) {
  const uint64_t owed = std::min(sweep_credit_, kSweepMax);
  sweep_credit_ -= owed;
  for (uint64_t left = std::min<uint64_t>(kSweepMin + owed, slab_.size()); left > 0;) {
    const auto n = static_cast<uint32_t>(std::min<uint64_t>(left, slab_.size() - hand_));
    sweep(hand_, n, clock_.now(), epoch);
    left -= n;
    hand_ += n;
    if (hand_ == slab_.size()) {
      hand_ = 0;
      lap_began_ = clock_.now();
    }
  }
}

uint64_t Table::sweep(uint32_t first, uint32_t n, int64_t as_of, uint32_t epoch) {
  const int64_t ahead = as_of - clock_.now();
  const uint64_t before = evicted_expired_;
  const uint32_t end = static_cast<uint32_t>(std::min<uint64_t>(uint64_t{first} + n, slab_.size()));
  for (uint32_t row = first; row < end; ++row) {
    RowHeader* header = slab_.header(row);
    if (slab_.is_free(row)) continue;
    const int64_t age = clock_.age(header->touched) + ahead;
    if (clock_.expired(age, slot_of(header->id))) {
      evict(row, epoch);
      ++evicted_expired_;
    } else if (age > RowClock::kAgeMax) {
      // No image for a cut: whether its age is this or more makes no difference to a row without expiry.
      header->touched = static_cast<uint16_t>(as_of - RowClock::kAgeMax);
    }
  }
  return evicted_expired_ - before;
}

void Table::set_clock(int64_t ticks) {
  if (clock_.started() && ticks <= clock_.now()) return;
  for (uint32_t row = 0; clock_.started() && row < slab_.size(); ++row) {
    if (slab_.is_free(row)) continue;
    const int64_t age = clock_.age(slab_.header(row)->touched) + ticks - clock_.now();
    slab_.header(row)->touched = static_cast<uint16_t>(ticks - std::min(age, RowClock::kAgeMax));
  }
  clock_.set(ticks);
  lap_began_ = ticks;
}

bool Table::expired(uint32_t row) const {
  const RowHeader* header = slab_.header(row);
  return clock_.expired(clock_.age(header->touched), slot_of(header->id));
}

uint32_t Table::without_expired(uint32_t row, uint32_t epoch) {
  if (row == kNoRow || !clock_.expires() || !expired(row)) return row;
  evict(row, epoch);
  ++evicted_expired_;
  return kNoRow;
}

void Table::evict(uint32_t row, uint32_t epoch) {
  if (cut_) cut_->before_change(slab_, row);
  const uint64_t id = slab_.header(row)->id;
  index_.erase(id);
  --slot_rows_[slot_of(id)];
  if ((journaling_ || saving_) && epoch > lost_epoch_) tombstones_.add(epoch, id);
  slab_.release(row);
}

void Table::erase(const uint64_t* ids, int64_t n, uint32_t epoch) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t row = index_.find(ids[i]);
    if (row != kNoRow) evict(row, epoch);
  }
}

bool Table::place_new(uint64_t id, uint32_t epoch) {
  const uint64_t limit = options_.memory_limit_bytes;
  if (limit == 0) return index_.insert(id, slab_.next());
  const bool full = slab_.free_rows() == 0 && bytes() + slab_.row_bytes() > limit;
  if (full && !(options_.evict_least_recent && evict_sampled(epoch))) return false;
  const uint64_t others = fixed_bytes() + slab_.bytes() + (slab_.free_rows() == 0 ? slab_.row_bytes() : 0);
  const uint64_t segments_max = others >= limit ? 0 : (limit - others) / CuckooIndex::kSegmentBytes;
  if (index_.insert(id, slab_.next(), segments_max)) return true;
  if (!options_.evict_least_recent) return false;
  // The index may not grow, and this id's buckets are full: room for it must come from there.
  uint32_t rows[2 * CuckooBucket::kSlots];
  const int n = index_.neighbours(id, rows);
  if (n == 0) return false;
  evict_for_memory(oldest_of(rows, n), epoch);
  return index_.insert(id, slab_.next(), segments_max);
}

// Called where no row number is free.
bool Table::evict_sampled(uint32_t epoch) {
  uint32_t rows[kSample];
  if (slab_.size() == 0) return false;
  for (uint32_t& row : rows) {
    row = static_cast<uint32_t>((mix64(++draws_) >> 32) * slab_.size() >> 32);
    slab_.prefetch_header(row);
  }
  evict_for_memory(oldest_of(rows, kSample), epoch);
  return true;
}

uint32_t Table::oldest_of(const uint32_t* rows, int n) const {
  return *std::max_element(rows, rows + n, [this](uint32_t a, uint32_t b) {
    return clock_.age(slab_.header(a)->touched) < clock_.age(slab_.header(b)->touched);
  });
}

void Table::evict_for_memory(uint32_t row, uint32_t epoch) {
  evict(row, epoch);
  ++evicted_memory_;
}

void Table::bound_backlog() {
  while (backlog() > options_.backlog_max) {
    lost_epoch_ = std::min(journal_.first_epoch(), tombstones_.first_epoch());
    journal_.drop(lost_epoch_);
    tombstones_.drop(lost_epoch_);
  }
}

}  // namespace cuckooflow
