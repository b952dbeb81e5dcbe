// Which ids lost their rows in which epoch, for the consumers of deltas.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <iterator>
#include <vector>

namespace cuckooflow {

class TombstoneJournal {
 public:
  void add(uint32_t epoch, uint64_t id) {
    if (parts_.empty() || parts_.back().epoch != epoch) parts_.push_back({epoch, {}});
    parts_.back().ids.push_back(id);
    ++size_;
  }

  // Forgets the epochs up to and including `epoch`.
  void drop(uint32_t epoch) {
    while (!parts_.empty() && parts_.front().epoch <= epoch) {
      size_ -= parts_.front().ids.size();
      parts_.pop_front();
    }
  }

  // The distinct ids evicted after `epoch` for which `gone` still holds, ascending.
  template <typename Gone>
  std::vector<uint64_t> collect(uint32_t epoch, const Gone& gone) const {
    std::vector<uint64_t> ids;
    for (const Part& part : parts_) {
      if (part.epoch <= epoch) continue;
      std::copy_if(part.ids.begin(), part.ids.end(), std::back_inserter(ids), gone);
    }
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    return ids;
  }

  size_t size() const { return size_; }
  // Of the oldest part; the greatest number where there is none.
  uint32_t first_epoch() const { return parts_.empty() ? 0xffffffffU : parts_.front().epoch; }

 private:
  struct Part {
    uint32_t epoch;
    std::vector<uint64_t> ids;
  };

  std::deque<Part> parts_;  // ascending epochs
  size_t size_ = 0;
};

}  // namespace cuckooflow
