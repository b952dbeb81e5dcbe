// A table as it stood at one moment, read piece by piece while pushes go on: before a push changes a row
// that was not read yet, it leaves the row's old image here. A cut may be of just those rows that were
// touched after an earlier one.
#pragma once

#include <cstdint>
#include <cstring>
#include <unordered_map>
#include <vector>

#include "row_slab.h"

namespace cuckooflow {

class TableCut {
 public:
  // `since`: of rows touched after this epoch; negative: of all.
  TableCut(const RowSlab& slab, uint32_t epoch, int64_t since)
      : rows_(slab.size()), epoch_(epoch), since_(since) {}

  uint32_t rows() const { return rows_; }

  // Called under the writer's lock, before the row changes.
  void before_change(const RowSlab& slab, uint32_t row) {
    if (row < next_ || row >= rows_ || !in_cut(slab, row)) return;
    const uint8_t* image = slab.at(row);
    images_.emplace(row, std::vector<uint8_t>(image, image + slab.row_bytes()));
  }

  // Copies those of the next `n` rows that are in the cut; how many. Called in order, under a reader's lock.
  uint32_t read(const RowSlab& slab, uint32_t n, uint8_t* out) {
    const size_t bytes = slab.row_bytes();
    uint32_t copied = 0;
    for (uint32_t row = next_; row < next_ + n; ++row) {
      const auto found = images_.find(row);
      if (found != images_.end()) {
        std::memcpy(out + bytes * copied++, found->second.data(), bytes);
        images_.erase(found);
      } else if (in_cut(slab, row)) {
        std::memcpy(out + bytes * copied++, slab.at(row), bytes);
      }
    }
    next_ += n;
    return copied;
  }

 private:
  // As it stands now: a row of a later epoch was saved already, is new, or was not in the cut.
  bool in_cut(const RowSlab& slab, uint32_t row) const {
    const uint32_t epoch = slab.header(row)->epoch;
    return epoch <= epoch_ && int64_t{epoch} > since_;
  }

  uint32_t rows_;
  uint32_t epoch_;
  int64_t since_;
  uint32_t next_ = 0;
  std::unordered_map<uint32_t, std::vector<uint8_t>> images_;
};

}  // namespace cuckooflow
