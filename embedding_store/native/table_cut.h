// A table as it stood at one moment, read piece by piece while pushes go on: before a push changes a row
// that was not read yet, it leaves the row's old image here.
#pragma once

#include <cstdint>
#include <cstring>
#include <unordered_map>
#include <vector>

#include "row_slab.h"

namespace cuckooflow {

class TableCut {
 public:
  TableCut(const RowSlab& slab, uint32_t epoch) : rows_(slab.size()), epoch_(epoch) {}

  uint32_t rows() const { return rows_; }

  // Called under the writer's lock, before the row changes.
  void before_change(const RowSlab& slab, uint32_t row) {
    if (row < next_ || row >= rows_ || slab.header(row)->epoch > epoch_) return;
    const uint8_t* image = slab.at(row);
    images_.emplace(row, std::vector<uint8_t>(image, image + slab.row_bytes()));
  }

  // Copies the next `n` rows. Called in order, under a reader's lock.
  void read(const RowSlab& slab, uint32_t n, uint8_t* out) {
    const size_t bytes = slab.row_bytes();
    for (uint32_t row = next_; row < next_ + n; ++row, out += bytes) {
      const auto found = images_.find(row);
      std::memcpy(out, found == images_.end() ? slab.at(row) : found->second.data(), bytes);
      if (found != images_.end()) images_.erase(found);
    }
    next_ += n;
  }

 private:
  uint32_t rows_;
  uint32_t epoch_;  // rows of a later epoch were saved already, or are new
  uint32_t next_ = 0;
  std::unordered_map<uint32_t, std::vector<uint8_t>> images_;
};

}  // namespace cuckooflow
