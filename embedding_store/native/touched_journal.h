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

#include "row_slab.h"

namespace cuckooflow {

class TouchedJournal {
 public:
  void add(uint32_t epoch, uint32_t row, const RowSlab& slab) {
    if (parts_.empty() || parts_.back().epoch != epoch) parts_.push_back({epoch, {}});
    parts_.back().rows.push_back(row);
    if (++size_ > size_t{slab.size()} * 2 + kSlack) sweep(slab);
  }

  // Forgets the epochs up to and including `epoch`: no consumer stands before it.
  void drop(uint32_t epoch) {
    while (!parts_.empty() && parts_.front().epoch <= epoch) {
      size_ -= parts_.front().rows.size();
      parts_.pop_front();
    }
  }

  // Of the oldest part; the greatest number where there is none.
  uint32_t first_epoch() const { return parts_.empty() ? 0xffffffffU : parts_.front().epoch; }

  // Appends the rows last touched after `epoch`.
  void collect(uint32_t epoch, const RowSlab& slab, std::vector<uint32_t>* rows) const {
    for (const Part& part : parts_) {
      if (part.epoch <= epoch) continue;
      for (size_t i = 0; i < part.rows.size(); ++i) {
        if (i + kAhead < part.rows.size()) slab.prefetch_header(part.rows[i + kAhead]);
        if (slab.header(part.rows[i])->epoch == part.epoch) rows->push_back(part.rows[i]);
      }
    }
  }

  size_t size() const { return size_; }

 private:
  static constexpr size_t kSlack = 4096;
  static constexpr size_t kAhead = 16;  // headers on their way while the journal is read
  struct Part {
    uint32_t epoch;
    std::vector<uint32_t> rows;
  };

  void sweep(const RowSlab& slab) {
    size_ = 0;
    for (Part& part : parts_) {
      size_t kept = 0;
      for (const uint32_t row : part.rows) {
        if (slab.listed_epoch(row) == part.epoch) part.rows[kept++] = row;
      }
      part.rows.resize(kept);
      part.rows.shrink_to_fit();
      size_ += kept;
    }
  }

  std::deque<Part> parts_;  // ascending epochs
  size_t size_ = 0;
};

}  // namespace cuckooflow
