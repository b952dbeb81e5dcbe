// From ids to their rows, many on the way at once.
//
// A row is two or three cache misses away: its bucket, perhaps its second one, its content. Ids go through
// these in blocks, each block one stage behind the next: while the rows of one block are used, those of the
// block after it are on the way, and the buckets of the one after that. So there is always about the same
// number of lines on the way, and each stage is a short loop whose branches are nearly always taken alike.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuckoo_index.h"
#include "row_slab.h"

namespace cuckooflow {

struct RowPipeline {
  // Large enough for a stage to last as long as a miss; the buckets of three blocks must stay in the first
  // cache, beside what is copied.
  static constexpr int kBlock = 12;

  const CuckooIndex& index;
  const RowSlab& slab;
  int64_t floats;  // of a row's content, that are wanted

  // Calls visit(row, i) for every id, in order; kNoRow where there is none. `visit` may change the index: a
  // row that was found before that is looked for again. `missing(i)` comes a block before the visit of an id
  // that has no row.
  template <bool kWrite, typename Missing, typename Visit>
  void run(const uint64_t* ids, int64_t n, Missing missing, Visit visit) const {
    Block ring[kStages];
    const int64_t blocks = (n + kBlock - 1) / kBlock;
    for (int64_t b = 0; b < blocks + kStages - 1; ++b) {
      const auto at = [&](int64_t k) { return Part{ids + k * kBlock, size_of(k, n)}; };
      if (b < blocks) place(at(b), &ring[b % kStages]);
      if (const int64_t k = b - 1; k >= 0 && k < blocks) look_first<kWrite>(at(k), &ring[k % kStages]);
      if (const int64_t k = b - 2; k >= 0 && k < blocks) {
        look_second<kWrite>(at(k), &ring[k % kStages], [&](int i) { missing(k * kBlock + i); });
      }
      if (const int64_t k = b - 3; k >= 0) {
        const Block& block = ring[k % kStages];
        const Part part = at(k);
        for (int i = 0; i < part.n; ++i) {
          const bool same = block.changes == index.changes();
          visit(same ? block.rows[i] : index.find(part.ids[i]), k * kBlock + i);
        }
      }
    }
  }

 private:
  static constexpr int kStages = 4;

  struct Part {
    const uint64_t* ids;
    int n;
  };
  struct Block {
    CuckooIndex::Place places[kBlock];
    uint32_t rows[kBlock];
    uint64_t changes;       // of the index, when the places were taken: they hold for as long
    int elsewhere[kBlock];  // those that were not in their first bucket
    int elsewhere_n;
  };

  static int size_of(int64_t block, int64_t n) {
    return static_cast<int>(std::min<int64_t>(kBlock, n - block * kBlock));
  }

  void place(Part part, Block* block) const {
    const CuckooIndex::Directory directory = index.directory();
    block->changes = index.changes();
    for (int i = 0; i < part.n; ++i) {
      block->places[i] = directory.place(CuckooIndex::hash(part.ids[i]));
      __builtin_prefetch(&block->places[i].first());
    }
  }

  template <bool kWrite>
  void look_first(Part part, Block* block) const {
    const RowSlab::Addresses addresses = slab.addresses();
    int elsewhere = 0;
    for (int i = 0; i < part.n; ++i) {
      const CuckooIndex::Place& at = block->places[i];
      const uint32_t row = at.first().find(part.ids[i], at.tag());
      block->rows[i] = row;
      if (row != kNoRow) {
        addresses.prefetch<kWrite>(row, floats);
      } else {
        if (at.first().spilled()) __builtin_prefetch(&at.second());
        block->elsewhere[elsewhere++] = i;
      }
    }
    block->elsewhere_n = elsewhere;
  }

  template <bool kWrite, typename Missing>
  void look_second(Part part, Block* block, Missing missing) const {
    for (int k = 0; k < block->elsewhere_n; ++k) {
      const int i = block->elsewhere[k];
      const CuckooIndex::Place& at = block->places[i];
      // What a visit has done to the buckets meanwhile shows in `changes`.
      const uint32_t row = at.first().spilled() ? at.second().find(part.ids[i], at.tag()) : kNoRow;
      block->rows[i] = row;
      if (row != kNoRow) {
        slab.addresses().prefetch<kWrite>(row, floats);
      } else {
        missing(i);
      }
    }
  }
};

}  // namespace cuckooflow
