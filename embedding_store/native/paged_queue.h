// A queue of numbers in blocks of memory of its own, which go back to the system as its beginning or end is
// dropped. It never moves what it holds, so adding never takes longer for what is there.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>

#include "huge_memory.h"

namespace cuckooflow {

template <typename T>
class PagedQueue {
 public:
  void push_back(T value) {
    const size_t at = first_ + size_;
    if (at / kPerBlock == blocks_.size()) {
      blocks_.emplace_back(HugeBlock::kAlign, HugeBlock::kAlign);
      touched_ = 0;
    }
    ++size_;
    slot(at) = value;
    touched_ = std::max(touched_, at % kPerBlock + 1);
  }

  T& operator[](size_t i) { return slot(first_ + i); }
  T operator[](size_t i) const { return slot(first_ + i); }

  void pop_front(size_t n) {
    first_ += n;
    size_ -= n;
    while (first_ >= kPerBlock) {
      blocks_.pop_front();
      first_ -= kPerBlock;
    }
    if (size_ == 0) clear();
  }

  // Keeps the first n.
  void truncate(size_t n) {
    size_ = n;
    if (n == 0) return clear();
    const size_t blocks = (first_ + n - 1) / kPerBlock + 1;
    if (blocks == blocks_.size()) return;
    while (blocks_.size() > blocks) blocks_.pop_back();
    touched_ = kPerBlock;
  }

  size_t size() const { return size_; }

  // Of memory that was written to.
  size_t bytes() const {
    constexpr size_t kPage = 4096;
    if (blocks_.empty()) return 0;
    return (blocks_.size() - 1) * HugeBlock::kAlign + (touched_ * sizeof(T) + kPage - 1) / kPage * kPage;
  }

 private:
  static constexpr size_t kPerBlock = HugeBlock::kAlign / sizeof(T);

  T& slot(size_t at) const { return reinterpret_cast<T*>(blocks_[at / kPerBlock].data())[at % kPerBlock]; }
  void clear() {
    blocks_.clear();
    first_ = touched_ = 0;
  }

  std::deque<HugeBlock> blocks_;
  size_t first_ = 0;  // of the first block
  size_t size_ = 0;
  size_t touched_ = 0;  // of the last block
};

}  // namespace cuckooflow
