// Which ids lost their rows in which epoch, for the consumers of deltas and for incremental checkpoints.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "paged_queue.h"

namespace cuckooflow {

class TombstoneJournal {
 public:
  void add(uint32_t epoch, uint64_t id) {
    if (parts_.empty() || parts_.back().epoch != epoch) parts_.push_back({epoch, 0});
    ++parts_.back().size;
    ids_.push_back(id);
  }

  // Forgets the epochs up to and including `epoch`.
  void drop(uint32_t epoch) {
    while (!parts_.empty() && parts_.front().epoch <= epoch) {
      ids_.pop_front(parts_.front().size);
      parts_.pop_front();
    }
  }

  // The distinct ids evicted after `epoch` for which `gone` still holds, ascending.
  template <typename Gone>
  std::vector<uint64_t> collect(uint32_t epoch, const Gone& gone) const {
    std::vector<uint64_t> ids;
    for (size_t i = begin_of(epoch); i < ids_.size(); ++i) {
      if (gone(ids_[i])) ids.push_back(ids_[i]);
    }
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    return ids;
  }

  // All ids evicted after `epoch`, as often as they were.
  std::vector<uint64_t> since(uint32_t epoch) const {
    std::vector<uint64_t> ids(ids_.size() - begin_of(epoch));
    for (size_t i = 0, at = ids_.size() - ids.size(); i < ids.size(); ++i) ids[i] = ids_[at + i];
    return ids;
  }

  size_t size() const { return ids_.size(); }
  size_t bytes() const { return ids_.bytes(); }
  // Of the oldest part; the greatest number where there is none.
  uint32_t first_epoch() const { return parts_.empty() ? 0xffffffffU : parts_.front().epoch; }

 private:
  struct Part {
    uint32_t epoch;
    size_t size;
  };

  size_t begin_of(uint32_t epoch) const {
    size_t at = 0;
    for (const Part& part : parts_) at += part.epoch <= epoch ? part.size : 0;
    return at;
  }

  std::deque<Part> parts_;  // ascending epochs
  PagedQueue<uint64_t> ids_;
};

}  // namespace cuckooflow
