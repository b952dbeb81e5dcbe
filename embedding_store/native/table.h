// An embedding table: index, rows, admission and what was touched. Looked up and updated in batches that
// prefetch. Reading is safe from many threads, writing needs exclusion (the store's lock).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "admission_filter.h"
#include "cuckoo_index.h"
#include "gradient_batch.h"
#include "initial_values.h"
#include "optimizer.h"
#include "row_slab.h"
#include "table_cut.h"
#include "touched_journal.h"

namespace cuckooflow {

// Which of `buckets` logical buckets an id belongs to.
inline uint32_t bucket_of(uint64_t id, uint32_t buckets) {
  return static_cast<uint32_t>((mix64(id ^ 0xbb67ae8584caa73bULL) >> 32) * buckets >> 32);
}

struct TableOptions {
  int64_t dim = 1;
  Optimizer optimizer;
  float init_stddev = 0.0F;
  uint64_t seed = 0;
  std::vector<uint8_t> admission;  // one entry a slot (4,096), or one for all of them
  uint64_t filter_bytes = 0;       // 0 where every slot admits at once
  uint32_t buckets = 64;
};

class Table {
 public:
  static constexpr int kSlotBits = 12;
  static constexpr int kBatch = 32;  // ids in flight at once; a core follows about a dozen misses

  explicit Table(const TableOptions& options);

  int64_t dim() const { return options_.dim; }
  uint32_t rows() const { return slab_.size(); }
  size_t row_bytes() const { return slab_.row_bytes(); }
  const CuckooIndex& index() const { return index_; }
  uint64_t bytes() const { return slab_.bytes() + index_.bytes() + filter_.image_bytes(); }
  uint64_t not_admitted() const { return not_admitted_; }

  // (n, dim) weights; initial values for ids without a row.
  void lookup(const uint64_t* ids, int64_t n, float* out) const;

  // One optimizer step for each id whose logical bucket is in the mask.
  void apply(const GradientBatch& batch, const uint8_t* bucket_mask, uint32_t epoch);

  // Sets the weights of distinct ids as they are given: what a replica does with a delta.
  void assign(const uint64_t* ids, const float* weights, int64_t n, uint32_t epoch);

  // Rows last touched after `epoch`, or all of them.
  void collect(uint32_t epoch, bool all, std::vector<uint64_t>* ids, std::vector<float>* weights) const;
  void keep_journal(bool keep) { journaling_ = keep; }
  void forget_touched(uint32_t epoch) { journal_.drop(epoch); }
  size_t journal_size() const { return journal_.size(); }

  void begin_cut(uint32_t epoch);
  void end_cut();
  uint32_t cut_rows() const { return cut_ ? cut_->rows() : 0; }
  void read_cut(uint32_t n, uint8_t* out) { cut_->read(slab_, n, out); }
  const std::vector<uint8_t>& cut_filter() const { return cut_filter_; }

  // Rows of a checkpoint, into a new table. False if an id comes twice.
  bool load_rows(const uint8_t* images, uint32_t n);
  bool load_filter(const uint8_t* image, uint64_t bytes) { return filter_.load(image, bytes); }
  bool load_filter_buckets(const uint8_t* image, uint64_t bytes, uint32_t first, uint32_t end) {
    return filter_.load_buckets(image, bytes, first, end);
  }

 private:
  // Row numbers of up to kBatch ids, kNoRow where there is none; each row's lines are on their way.
  template <bool kWrite>
  void find_batch(const uint64_t* ids, int n, uint32_t* rows) const;
  uint32_t create(uint64_t id);
  void touch(uint32_t row, uint32_t epoch);
  uint32_t admission_of(uint64_t id) const {
    return options_.admission.size() == 1 ? options_.admission[0]
                                          : options_.admission[id >> (64 - kSlotBits)];
  }

  TableOptions options_;
  InitialValues initial_;
  CuckooIndex index_;
  RowSlab slab_;
  AdmissionFilter filter_;
  TouchedJournal journal_;
  bool journaling_ = false;
  uint64_t not_admitted_ = 0;
  std::unique_ptr<TableCut> cut_;
  std::vector<uint8_t> cut_filter_;
};

}  // namespace cuckooflow
