// Which rows were touched in which epoch, so that a delta costs what was touched and not the table.
//
// A row is listed once in each epoch in which it was touched. An entry is current while the row's own
// epoch is still the entry's; a row has one current entry at most, so a delta needs no deduplication.
// A free row's entry is kept while its epoch lasts: should the row be used again in it, it is listed already.
// Entries that are no longer current are swept out when the journal is over twice the table's rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "paged_queue.h"
#include "row_slab.h"

namespace cuckooflow {

class TouchedJournal {
 public:
  void add(uint32_t epoch, uint32_t row, const RowSlab& slab) {
    if (parts_.empty() || parts_.back().epoch != epoch) parts_.push_back({epoch, 0});
    ++parts_.back().size;
    rows_.push_back(row);
    if (rows_.size() > size_t{slab.size()} * 2 + kSlack) sweep(slab);
  }

  // Forgets the epochs up to and including `epoch`: no consumer stands before it.
  void drop(uint32_t epoch) {
    while (!parts_.empty() && parts_.front().epoch <= epoch) {
      rows_.pop_front(parts_.front().size);
      parts_.pop_front();
    }
  }

  // Of the oldest part; the greatest number where there is none.
  uint32_t first_epoch() const { return parts_.empty() ? 0xffffffffU : parts_.front().epoch; }

  // Appends the rows last touched after `epoch`.
  void collect(uint32_t epoch, const RowSlab& slab, std::vector<uint32_t>* rows) const {
    size_t i = 0;
    for (const Part& part : parts_) {
      const size_t end = i + part.size;
      if (part.epoch <= epoch) i = end;
      for (; i < end; ++i) {
        if (i + kAhead < end) slab.prefetch_header(rows_[i + kAhead]);
        if (slab.header(rows_[i])->epoch == part.epoch) rows->push_back(rows_[i]);
      }
    }
  }

  size_t size() const { return rows_.size(); }
  size_t bytes() const { return rows_.bytes(); }

 private:
  static constexpr size_t kSlack = 4096;
  static constexpr size_t kAhead = 16;  // headers on their way while the journal is read
  struct Part {
    uint32_t epoch;
    size_t size;
  };

  void sweep(const RowSlab& slab) {
    size_t at = 0, kept = 0;
    for (Part& part : parts_) {
      const size_t end = at + part.size;
      part.size = 0;
      for (; at < end; ++at) {
        if (slab.listed_epoch(rows_[at]) != part.epoch) continue;
        rows_[kept++] = rows_[at];
        ++part.size;
      }
    }
    rows_.truncate(kept);
  }

  std::deque<Part> parts_;  // ascending epochs
  PagedQueue<uint32_t> rows_;
};

}  // namespace cuckooflow
