// The gradients of one push for one table: duplicated ids summed (in the order of their appearance),
// each id once, with how often it occurred. Made outside of any lock.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "hashing.h"

namespace cuckooflow {

// True if no value is NaN or infinite. An exponent of all ones is what both have in common.
inline bool all_finite(const float* values, int64_t n) {
  constexpr uint32_t kExponent = 0x7f800000U;
  uint32_t found = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof(bits));
    found |= static_cast<uint32_t>((bits & kExponent) == kExponent);
  }
  return found == 0;
}

class GradientBatch {
 public:
  // `gradients`, (n, dim), must outlive this: those of ids that occur once are read there. `occurrences` may
  // be null: once each.
  GradientBatch(const uint64_t* all, const float* gradients, const uint32_t* occurrences, int64_t n,
                int64_t dim)
      : dim_(dim), gradients_(gradients) {
    size_t capacity = 16;
    while (capacity < static_cast<size_t>(n) * 2) capacity *= 2;
    constexpr uint32_t kFree = 0xffffffffU;
    std::vector<uint32_t> seats(capacity, kFree);
    ids_.reserve(n);
    counts_.reserve(n);
    sources_.reserve(n);
    for (int64_t i = 0; i < n; ++i) {
      size_t seat = mix64(all[i] + 0x9e3779b97f4a7c15ULL) & (capacity - 1);
      while (seats[seat] != kFree && ids_[seats[seat]] != all[i]) seat = (seat + 1) & (capacity - 1);
      const uint32_t times = occurrences == nullptr ? 1 : occurrences[i];
      if (seats[seat] == kFree) {
        seats[seat] = static_cast<uint32_t>(ids_.size());
        ids_.push_back(all[i]);
        counts_.push_back(times);
        sources_.push_back(i);
      } else {
        add(seats[seat], i, times);
      }
    }
  }

  // Distinct.
  const std::vector<uint64_t>& ids() const { return ids_; }
  // How often the i-th occurred; saturating.
  uint32_t count(int64_t i) const { return counts_[i]; }
  // (dim) its gradient.
  const float* gradient(int64_t i) const {
    const int64_t source = sources_[i];
    return source >= 0 ? gradients_ + source * dim_ : sums_.data() + ~source * dim_;
  }
  // A NaN or an infinity stays one in a sum, so this tells of the parts too.
  bool finite() const {
    bool finite = true;
    for (size_t i = 0; i < ids_.size(); ++i) finite &= all_finite(gradient(static_cast<int64_t>(i)), dim_);
    return finite;
  }

 private:
  void add(uint32_t at, int64_t i, uint32_t times) {
    if (sources_[at] >= 0) {
      const float* first = gradients_ + sources_[at] * dim_;
      sources_[at] = ~static_cast<int64_t>(sums_.size() / dim_);
      sums_.insert(sums_.end(), first, first + dim_);
    }
    const float* more = gradients_ + i * dim_;
    float* sum = sums_.data() + ~sources_[at] * dim_;
    for (int64_t c = 0; c < dim_; ++c) sum[c] += more[c];
    counts_[at] = counts_[at] > 0xffffffffU - times ? 0xffffffffU : counts_[at] + times;
  }

  int64_t dim_;
  const float* gradients_;
  std::vector<uint64_t> ids_;
  std::vector<uint32_t> counts_;
  std::vector<int64_t> sources_;  // where an id's gradient is: which of those given, or ~which of the sums
  std::vector<float> sums_;
};

}  // namespace cuckooflow
