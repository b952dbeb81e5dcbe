// Images of rows, all of one size, by number; the memory of released ones is used again first.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "huge_memory.h"

namespace cuckooflow {

class ImagePool {
 public:
  explicit ImagePool(size_t image_bytes)
      : image_bytes_(image_bytes),
        per_block_(static_cast<uint32_t>(std::max<size_t>(1, HugeBlock::kAlign / image_bytes))) {}

  uint32_t take() {
    if (!free_.empty()) {
      const uint32_t image = free_.back();
      free_.pop_back();
      return image;
    }
    if (size_ == blocks_.size() * per_block_) {
      const size_t bytes = image_bytes_ * per_block_;
      blocks_.emplace_back(bytes, bytes);
    }
    return size_++;
  }
  void release(uint32_t image) { free_.push_back(image); }
  void clear() {
    blocks_.clear();
    free_ = {};
    size_ = 0;
  }

  uint8_t* at(uint32_t image) const {
    return blocks_[image / per_block_].data() + image_bytes_ * (image % per_block_);
  }
  size_t image_bytes() const { return image_bytes_; }
  uint64_t used() const { return size_ - free_.size(); }
  // Of memory that was written to.
  uint64_t bytes() const { return size_ * image_bytes_ + free_.size() * sizeof(uint32_t); }

 private:
  size_t image_bytes_;
  uint32_t per_block_;
  uint32_t size_ = 0;
  std::vector<uint32_t> free_;
  std::vector<HugeBlock> blocks_;
};

}  // namespace cuckooflow
