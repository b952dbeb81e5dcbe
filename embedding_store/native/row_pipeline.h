// From ids to their rows, many on the way at once.
//
// A row is two or three cache misses away: its bucket, perhaps its second one, its content. Each id goes
// through these in turn, and a few steps of as many other ids lie between its own. So there is always about
// the same number of lines on the way; asked for in bursts, they would wait for each other's address
// translations.
#pragma once

#include <cstdint>

#include "cuckoo_index.h"
#include "row_slab.h"

namespace cuckooflow {

struct RowPipeline {
  static constexpr int64_t kAhead =
      12;  // ids between an id's bucket being asked for and its content, and its use
  static constexpr int64_t kRing = 32;
  static_assert(2 * kAhead < kRing);

  const CuckooIndex& index;
  const RowSlab& slab;
  int64_t floats;  // of a row's content, that are wanted

  // Calls visit(row, i) for every id, in order; kNoRow where there is none. `visit` may change the index: a
  // row that was found before that is looked for again. `missing(i)` comes some steps before the visit of an
  // id that has no row.
  template <bool kWrite, typename Missing, typename Visit>
  void run(const uint64_t* ids, int64_t n, Missing missing, Visit visit) const {
    struct Under {
      uint64_t hash;
      uint64_t changes;
      uint32_t row;
      bool second;
    };
    Under ring[kRing];
    for (int64_t i = 0; i < n + 2 * kAhead; ++i) {
      if (i < n) {
        Under& id = ring[i % kRing];
        id.hash = CuckooIndex::hash(ids[i]);
        __builtin_prefetch(&index.place_of(id.hash).first());
      }
      if (const int64_t k = i - kAhead; k >= 0 && k < n) {
        Under& id = ring[k % kRing];
        const CuckooIndex::Place at = index.place_of(id.hash);
        id.changes = index.changes();
        id.row = at.first().find(ids[k], at.tag());
        id.second = id.row == kNoRow && at.first().spilled();
        if (id.second) __builtin_prefetch(&at.second());
        if (id.row != kNoRow) slab.prefetch<kWrite>(id.row, floats);
      }
      if (const int64_t k = i - kAhead * 3 / 2; k >= 0 && k < n && ring[k % kRing].row == kNoRow) {
        Under& id = ring[k % kRing];
        if (id.second) {
          const CuckooIndex::Place at = index.place_of(id.hash);
          id.row = at.second().find(ids[k], at.tag());
        }
        if (id.row != kNoRow) {
          slab.prefetch<kWrite>(id.row, floats);
        } else {
          missing(k);
        }
      }
      if (const int64_t k = i - 2 * kAhead; k >= 0) {
        const Under& id = ring[k % kRing];
        visit(id.changes == index.changes() ? id.row : index.find(ids[k]), k);
      }
    }
  }
};

}  // namespace cuckooflow
