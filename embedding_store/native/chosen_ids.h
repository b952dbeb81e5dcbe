// Those ids of a call whose logical bucket takes it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "hashing.h"

namespace cuckooflow {

// Which of `buckets` logical buckets an id belongs to.
inline uint32_t bucket_of(uint64_t id, uint32_t buckets) {
  return static_cast<uint32_t>((mix64(id ^ 0xbb67ae8584caa73bULL) >> 32) * buckets >> 32);
}

class ChosenIds {
 public:
  // `mask`, one value a bucket, 0 for those that do not; null: all do. `ids` must outlive this.
  ChosenIds(const uint64_t* ids, int64_t n, const uint8_t* mask, uint32_t buckets) : all_(ids), size_(n) {
    if (mask == nullptr || std::find(mask, mask + buckets, uint8_t{0}) == mask + buckets) return;
    for (int64_t i = 0; i < n; ++i) {
      if (mask[bucket_of(ids[i], buckets)] == 0) continue;
      ids_.push_back(ids[i]);
      sources_.push_back(i);
    }
    chosen_ = true;
    size_ = static_cast<int64_t>(ids_.size());
  }

  int64_t size() const { return size_; }
  const uint64_t* ids() const { return chosen_ ? ids_.data() : all_; }
  // Which of the call's ids the k-th is.
  int64_t source(int64_t k) const { return chosen_ ? sources_[k] : k; }

 private:
  const uint64_t* all_;
  int64_t size_;
  bool chosen_ = false;
  std::vector<uint64_t> ids_;
  std::vector<int64_t> sources_;
};

}  // namespace cuckooflow
