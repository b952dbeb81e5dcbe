// A counter's row: sums of amounts, each decayed by half within a half-life of event time, as of the row's
// last update. An amount that comes late is decayed to that moment before it is added, so sums do not
// depend on the order of updates (but for rounding).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace cuckooflow {

constexpr int64_t kNever = INT64_MIN;  // no event has this time

// The row begins with these; its sums follow, float64 since a sum of ones stands still at 2^24 in float32.
struct CounterTimes {
  int64_t first_us;
  int64_t last_us;
};

class CounterDecay {
 public:
  CounterDecay() = default;
  // One half-life a column, or one for all; 0 for sums that keep everything.
  explicit CounterDecay(const std::vector<int64_t>& half_lives_us) {
    for (const int64_t us : half_lives_us) rates_.push_back(us == 0 ? 0.0 : 1.0 / static_cast<double>(us));
  }

  static void clear(CounterTimes* row) { *row = {kNever, kNever}; }

  // Adds amounts of the time `at_us` to a row.
  void add(CounterTimes* row, const float* amounts, int64_t columns, int64_t at_us) const {
    auto* sums = reinterpret_cast<double*>(row + 1);
    if (row->last_us == kNever) {
      *row = {at_us, at_us};
      for (int64_t c = 0; c < columns; ++c) sums[c] = amounts[c];
      return;
    }
    const int64_t newest = std::max(row->last_us, at_us);
    const int64_t age = newest - row->last_us;
    const int64_t late = newest - at_us;
    each_factor(columns, age + late, [&](int64_t c, double factor) {
      sums[c] = age > 0 ? sums[c] * factor + amounts[c] : sums[c] + amounts[c] * factor;
    });
    row->first_us = std::min(row->first_us, at_us);
    row->last_us = newest;
  }

  // The sums at `as_of_us`: nothing where all amounts came later; as of the last update where only some
  // did, since a sum does not tell which.
  void read(const CounterTimes* row, int64_t columns, int64_t as_of_us, float* out, int64_t* times) const {
    if (as_of_us < row->first_us) {
      read_none(columns, out, times);
      return;
    }
    const auto* sums = reinterpret_cast<const double*>(row + 1);
    each_factor(columns, std::max<int64_t>(0, as_of_us - row->last_us),
                [&](int64_t c, double factor) { out[c] = static_cast<float>(sums[c] * factor); });
    times[0] = row->first_us;
    times[1] = row->last_us;
  }

  static void read_none(int64_t columns, float* out, int64_t* times) {
    std::fill_n(out, columns, 0.0F);
    times[0] = times[1] = kNever;
  }

 private:
  template <typename Use>
  void each_factor(int64_t columns, int64_t us, Use use) const {
    double factor = 1.0;
    for (int64_t c = 0; c < columns; ++c) {
      if (c < static_cast<int64_t>(rates_.size())) factor = std::exp2(-static_cast<double>(us) * rates_[c]);
      use(c, factor);
    }
  }

  std::vector<double> rates_;
};

}  // namespace cuckooflow
