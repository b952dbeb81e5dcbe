// A table as it stood at one moment, read piece by piece while pushes and evictions go on: before a row
// that was not read yet is changed, released or taken into use, its old image is left here; an empty image
// where the row was free. A cut may be of just those rows that were touched after an earlier one.
#pragma once

#include <cstdint>
#include <cstring>
#include <unordered_map>
#include <utility>
#include <vector>

#include "row_slab.h"

namespace cuckooflow {

class TableCut {
 public:
  // `since`: of rows touched after this epoch; negative: of all.
  TableCut(const RowSlab& slab, uint32_t epoch, int64_t since)
      : rows_(slab.size()), epoch_(epoch), since_(since) {}

  // Row numbers to read, free ones among them.
  uint32_t rows() const { return rows_; }

  // Called under the writer's lock, before the row changes.
  void before_change(const RowSlab& slab, uint32_t row) {
    if (row < next_ || row >= rows_) return;
    if (slab.is_free(row)) {
      images_.try_emplace(row);  // unless it was released since: then its image is here already
      return;
    }
    if (!in_cut(slab, row) || images_.count(row) > 0) return;
    std::vector<uint8_t> image(slab.row_bytes());
    slab.save(row, image.data());
    images_.emplace(row, std::move(image));
  }

  // Copies those of the next `n` row numbers that were rows of the cut; how many. Called in order, under a
  // reader's lock.
  uint32_t read(const RowSlab& slab, uint32_t n, uint8_t* out) {
    const size_t bytes = slab.row_bytes();
    uint32_t copied = 0;
    for (uint32_t row = next_; row < next_ + n; ++row) {
      const auto found = images_.find(row);
      const bool kept = found != images_.end();
      if (kept) {
        if (!found->second.empty()) std::memcpy(out + bytes * copied++, found->second.data(), bytes);
        images_.erase(found);
      } else if (!slab.is_free(row) && in_cut(slab, row)) {
        slab.save(row, out + bytes * copied++);
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
