// The gradients of one push for one table: duplicated ids summed (in the order of their appearance),
// each id once, with how often it occurred. Made outside of any lock.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "hashing.h"

namespace cuckooflow {

// True if no value is NaN or infinite. An exponent of all ones is what both have in common.
inline bool all_finite(const float* values, int64_t n) {
  bool finite = true;
  for (int64_t i = 0; i < n; ++i) finite &= std::fabs(values[i]) <= 3.4028234663852886e38F;
  return finite;
}

struct GradientBatch {
  std::vector<uint64_t> ids;     // distinct
  std::vector<float> sums;       // ids.size() x dim
  std::vector<uint32_t> counts;  // saturating

  // `occurrences` may be null: once each.
  GradientBatch(const uint64_t* all, const float* gradients, const uint32_t* occurrences, int64_t n,
                int64_t dim) {
    size_t capacity = 16;
    while (capacity < static_cast<size_t>(n) * 2) capacity *= 2;
    constexpr uint32_t kFree = 0xffffffffU;
    std::vector<uint32_t> seats(capacity, kFree);
    ids.reserve(n);
    counts.reserve(n);
    sums.reserve(n * dim);
    for (int64_t i = 0; i < n; ++i) {
      size_t seat = mix64(all[i] + 0x9e3779b97f4a7c15ULL) & (capacity - 1);
      while (seats[seat] != kFree && ids[seats[seat]] != all[i]) seat = (seat + 1) & (capacity - 1);
      const float* g = gradients + i * dim;
      const uint32_t times = occurrences == nullptr ? 1 : occurrences[i];
      if (seats[seat] == kFree) {
        seats[seat] = static_cast<uint32_t>(ids.size());
        ids.push_back(all[i]);
        counts.push_back(times);
        sums.insert(sums.end(), g, g + dim);
      } else {
        const uint32_t at = seats[seat];
        float* sum = sums.data() + at * dim;
        for (int64_t c = 0; c < dim; ++c) sum[c] += g[c];
        counts[at] = counts[at] > 0xffffffffU - times ? 0xffffffffU : counts[at] + times;
      }
    }
  }
};

}  // namespace cuckooflow
