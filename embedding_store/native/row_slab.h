// Rows of one table, by number. A row is a small header, its weights and all optimizer slots in one
// piece, so that it is always one version. Rows never move; they are appended only.
#pragma once

#include <cstdint>
#include <new>
#include <vector>

#include "huge_memory.h"

namespace cuckooflow {

struct RowHeader {
  uint64_t id;
  uint32_t epoch;  // the store's epoch when the row was last touched
  uint32_t step;   // how often it was updated
};
static_assert(sizeof(RowHeader) == 16, "the header is part of the checkpoint's format");

class RowSlab {
 public:
  RowSlab(int64_t dim, int64_t slots)
      : row_bytes_((sizeof(RowHeader) + sizeof(float) * dim * (1 + slots) + 15) / 16 * 16) {
    while ((row_bytes_ << (shift_ + 1)) <= kChunkBytes) ++shift_;
  }

  size_t row_bytes() const { return row_bytes_; }
  uint32_t size() const { return size_; }
  size_t bytes() const { return size_ * row_bytes_; }

  uint8_t* at(uint32_t row) const {
    return chunks_[row >> shift_].data() + size_t{row & ((1U << shift_) - 1)} * row_bytes_;
  }
  RowHeader* header(uint32_t row) const { return reinterpret_cast<RowHeader*>(at(row)); }
  float* weights(uint32_t row) const { return reinterpret_cast<float*>(at(row) + sizeof(RowHeader)); }

  // A new zeroed row's number.
  uint32_t append() {
    if (size_ == kRowsMax) throw std::bad_alloc();
    if ((size_ >> shift_) == chunks_.size()) chunks_.emplace_back(row_bytes_ << shift_);
    return size_++;
  }

  // Asks for the cache lines of a row that hold its header and `floats` floats after it.
  template <bool kWrite>
  void prefetch(uint32_t row, int64_t floats) const {
    // GCC takes a function that only prefetches for a pure one and drops calls of it; this is an effect.
    asm volatile("");
    const uint8_t* p = at(row);
    const uint8_t* end = p + sizeof(RowHeader) + sizeof(float) * floats;
    for (p -= reinterpret_cast<uintptr_t>(p) % 64; p < end; p += 64) __builtin_prefetch(p, kWrite ? 1 : 0, 3);
  }

 private:
  static constexpr uint32_t kRowsMax = 0xffffffffU;  // the last number means: no row
  // Bound of a chunk: 16 huge pages, so that rounding up to whole ones wastes little. Pages that no row
  // has touched yet cost nothing.
  static constexpr size_t kChunkBytes = 16 * HugeBlock::kAlign;

  size_t row_bytes_;
  uint32_t shift_ = 0;  // log2 of the rows in a chunk
  uint32_t size_ = 0;
  std::vector<HugeBlock> chunks_;
};

}  // namespace cuckooflow
