// Rows of one table, by number. A row is a small header, and its weights and all optimizer slots in one
// piece; all of it changes under the writer's lock, so that it is always one version. Rows never move; the
// memory of released ones is used again first.
//
// Rows lie in groups of four: one cache line of their headers, then their contents. So a header costs no
// more than its 16 bytes, and contents of whole cache lines begin at one: what a lookup reads is as few lines
// as can be, none of them a header's.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "huge_memory.h"
#include "page_filler.h"

namespace cuckooflow {

struct RowHeader {
  static constexpr uint32_t kFree = 0xffffffffU;

  uint64_t id;
  uint32_t epoch;    // the store's epoch when the row was last touched; kFree where there is no row
  uint16_t step;     // how often it was updated, where the optimizer asks; stays at its greatest value
  uint16_t touched;  // when it was last touched, by the table's RowClock

  // Adam's bias correction is 1 but for 0.1 % at 65,535 steps; larger betas than 0.9999 are refused.
  uint32_t next_step() {
    step += step != 0xffffU;
    return step;
  }
};
static_assert(sizeof(RowHeader) == 16, "the header is part of the checkpoint's format");

class RowSlab {
 public:
  // Where rows lie, by value: what a loop over rows keeps in registers. Stale once a row was appended.
  class Addresses {
   public:
    RowHeader* header(uint32_t row) const {
      return reinterpret_cast<RowHeader*>(group(row) + sizeof(RowHeader) * (row % kGroup));
    }
    // The row's content.
    float* weights(uint32_t row) const {
      return reinterpret_cast<float*>(group(row) + sizeof(RowHeader) * kGroup +
                                      content_bytes_ * (row % kGroup));
    }

    // Asks for the cache lines of a row's first `floats` floats; to write them, also of its header. That
    // is mostly just read: asked for in order to write, its line would be written back to memory as well.
    template <bool kWrite>
    void prefetch(uint32_t row, int64_t floats) const {
      // GCC takes a function that only prefetches for a pure one and drops calls of it; this is an effect.
      asm volatile("");
      if (kWrite) __builtin_prefetch(header(row), 0, 3);
      const auto* p = reinterpret_cast<const uint8_t*>(weights(row));
      const uint8_t* end = p + sizeof(float) * floats;
      // To the second cache: the first one holds what the stages of a pipeline work on.
      for (p -= reinterpret_cast<uintptr_t>(p) % kLine; p < end; p += kLine)
        __builtin_prefetch(p, kWrite ? 1 : 0, 2);
    }

   private:
    friend class RowSlab;
    Addresses(const HugeBlock* chunks, uint32_t shift, size_t content_bytes)
        : chunks_(chunks), shift_(shift), content_bytes_(content_bytes) {}

    uint8_t* group(uint32_t row) const {
      const size_t in_chunk = row & ((1U << shift_) - 1);
      return chunks_[row >> shift_].data() +
             in_chunk / kGroup * (kGroup * (sizeof(RowHeader) + content_bytes_));
    }

    const HugeBlock* chunks_;
    uint32_t shift_;
    size_t content_bytes_;
  };

  // `slots`: optimizer slot values of one row.
  RowSlab(int64_t dim, int64_t slots) : content_bytes_((sizeof(float) * (dim + slots) + 15) / 16 * 16) {
    while ((row_bytes() << (shift_ + 1)) <= kChunkBytes) ++shift_;
  }

  Addresses addresses() const { return {chunks_.data(), shift_, content_bytes_}; }

  // Of a row's image, which is its header and then its content: also what it takes in memory.
  size_t row_bytes() const { return sizeof(RowHeader) + content_bytes_; }
  // Row numbers are below this; some may be free.
  uint32_t size() const { return size_; }
  uint32_t free_rows() const { return free_count_; }
  uint32_t used_rows() const { return size_ - free_count_; }
  size_t bytes() const { return size_ * row_bytes(); }

  RowHeader* header(uint32_t row) const { return addresses().header(row); }
  float* weights(uint32_t row) const { return addresses().weights(row); }

  void save(uint32_t row, uint8_t* image) const {
    std::memcpy(image, header(row), sizeof(RowHeader));
    std::memcpy(image + sizeof(RowHeader), weights(row), content_bytes_);
  }
  void load(uint32_t row, const uint8_t* image) {
    std::memcpy(header(row), image, sizeof(RowHeader));
    std::memcpy(weights(row), image + sizeof(RowHeader), content_bytes_);
  }

  bool is_free(uint32_t row) const { return header(row)->epoch == RowHeader::kFree; }

  // The epoch in which the touched journal last listed this row number, be it free or not.
  uint32_t listed_epoch(uint32_t row) const {
    return is_free(row) ? free_link(row)->listed_epoch : header(row)->epoch;
  }

  // The number that take() will give.
  uint32_t next() const { return free_count_ > 0 ? first_free_ : size_; }

  // A zeroed row's number.
  uint32_t take() {
    if (free_count_ == 0) return append();
    const uint32_t row = first_free_;
    first_free_ = free_link(row)->next;
    --free_count_;
    std::memset(header(row), 0, sizeof(RowHeader));
    std::memset(weights(row), 0, content_bytes_);
    return row;
  }

  // There will be so many rows: where they go.
  std::vector<PageFiller::Piece> reserve(uint32_t rows) {
    std::vector<PageFiller::Piece> pieces;
    const size_t chunk_bytes = row_bytes() << shift_;
    for (size_t left = (size_t{rows} + kGroup - 1) / kGroup * kGroup * row_bytes(); left > 0;) {
      if (pieces.size() == chunks_.size()) new_chunk();
      pieces.push_back({chunks_[pieces.size()].data(), std::min(left, chunk_bytes)});
      left -= pieces.back().bytes;
    }
    return pieces;
  }

  // The row's content is lost.
  void release(uint32_t row) {
    const uint32_t listed = header(row)->epoch;
    *free_link(row) = {first_free_, listed, RowHeader::kFree, 0};
    first_free_ = row;
    ++free_count_;
  }

  template <bool kWrite>
  void prefetch(uint32_t row, int64_t floats) const {
    addresses().prefetch<kWrite>(row, floats);
  }
  void prefetch_header(uint32_t row) const {
    asm volatile("");
    __builtin_prefetch(header(row), 0, 3);
  }

 private:
  // What lies in a free row in its header's place.
  struct FreeLink {
    uint32_t next;
    uint32_t listed_epoch;
    uint32_t epoch;  // RowHeader::kFree
    uint32_t unused;
  };
  static_assert(offsetof(FreeLink, epoch) == offsetof(RowHeader, epoch) && sizeof(FreeLink) == 16);

  FreeLink* free_link(uint32_t row) const { return reinterpret_cast<FreeLink*>(header(row)); }

  uint32_t append() {
    if (size_ == kRowsMax) throw std::bad_alloc();
    if ((size_ >> shift_) == chunks_.size()) new_chunk();
    return size_++;
  }
  void new_chunk() { chunks_.emplace_back(row_bytes() << shift_, chunks_.empty() ? HugeBlock::kAlign : 0); }

  static constexpr uint32_t kGroup = 4;
  static constexpr uintptr_t kLine = 64;
  static_assert(kGroup * sizeof(RowHeader) == kLine, "the headers of a group are one cache line");
  static constexpr uint32_t kRowsMax = 0xffffffffU;  // the last number means: no row
  // Bound of a chunk: 16 huge pages, so that rounding up to whole ones wastes little. Pages that no row
  // has touched yet cost nothing.
  static constexpr size_t kChunkBytes = 16 * HugeBlock::kAlign;

  size_t content_bytes_;
  uint32_t shift_ = 0;  // log2 of the rows in a chunk
  uint32_t size_ = 0;
  uint32_t first_free_ = 0;
  uint32_t free_count_ = 0;
  std::vector<HugeBlock> chunks_;
};

}  // namespace cuckooflow
