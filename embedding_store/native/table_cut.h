// A table as it stood at one moment, read piece by piece while pushes and evictions go on: before a row
// that was not read yet is changed, released or taken into use, its old image is left here; none where
// the row was free. A cut may be of just those rows that were touched after an earlier one.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>

#include "cuckoo_index.h"
#include "image_pool.h"
#include "row_slab.h"

namespace cuckooflow {

class TableCut {
 public:
  // `since`: of rows touched after this epoch; negative: of all.
  TableCut(const RowSlab& slab, uint32_t epoch, int64_t since)
      : rows_(slab.size()), epoch_(epoch), since_(since), images_(slab.row_bytes()) {}

  // Row numbers to read, free ones among them.
  uint32_t rows() const { return rows_; }

  // Of memory for the images that are kept here now.
  uint64_t bytes() const { return bytes_.load(std::memory_order_relaxed); }
  // The same, and what was in use for others before.
  uint64_t held_bytes() const { return held_bytes_.load(std::memory_order_relaxed); }

  // Under the writer's lock: forgets everything; it cannot be read to its end any more.
  void give_up() {
    next_ = rows_;
    images_.clear();
    kept_.reset();
    given_up_ = true;
    count();
  }
  bool given_up() const { return given_up_; }

  // Called under the writer's lock, before the row changes.
  void before_change(const RowSlab& slab, uint32_t row) {
    if (row < next_ || row >= rows_) return;
    const bool free = slab.is_free(row);
    if (!free && !in_cut(slab, row)) return;
    if (!kept_) kept_ = std::make_unique<CuckooIndex>();
    // A free one that was released since has its image here already.
    if (kept_->find(row) != kNoRow) return;
    uint32_t image = kNoImage;
    if (!free) {
      image = images_.take();
      slab.save(row, images_.at(image));
    }
    kept_->insert(row, image);
    count();
  }

  // Copies those of the next `n` row numbers that were rows of the cut; how many. Called in order, under a
  // reader's lock.
  uint32_t read(const RowSlab& slab, uint32_t n, uint8_t* out) {
    const size_t bytes = slab.row_bytes();
    uint32_t copied = 0;
    for (uint32_t row = next_; row < next_ + n; ++row) {
      const uint32_t image = kept_ ? kept_->find(row) : kNoRow;
      if (image == kNoRow) {
        if (!slab.is_free(row) && in_cut(slab, row)) slab.save(row, out + bytes * copied++);
        continue;
      }
      if (image != kNoImage) {
        std::memcpy(out + bytes * copied++, images_.at(image), bytes);
        images_.release(image);
      }
      kept_->erase(row);
    }
    next_ += n;
    count();
    return copied;
  }

 private:
  static constexpr uint32_t kNoImage = kNoRow - 1;

  // As it stands now: a row of a later epoch was saved already, is new, or was not in the cut.
  bool in_cut(const RowSlab& slab, uint32_t row) const {
    const uint32_t epoch = slab.header(row)->epoch;
    return epoch <= epoch_ && int64_t{epoch} > since_;
  }

  void count() {
    bytes_.store(images_.used() * images_.image_bytes() + (kept_ ? kept_->size() * sizeof(uint64_t) * 2 : 0),
                 std::memory_order_relaxed);
    held_bytes_.store(images_.bytes() + (kept_ ? kept_->bytes() : 0), std::memory_order_relaxed);
  }

  uint32_t rows_;
  uint32_t epoch_;
  int64_t since_;
  uint32_t next_ = 0;
  bool given_up_ = false;
  ImagePool images_;
  std::unique_ptr<CuckooIndex> kept_;  // row number -> image's
  // Statistics are read beside the reader.
  std::atomic<uint64_t> bytes_{0};
  std::atomic<uint64_t> held_bytes_{0};
};

}  // namespace cuckooflow
