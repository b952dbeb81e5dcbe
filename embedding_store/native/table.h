// An embedding table: index, rows, admission and what was touched. Looked up and updated in batches that
// prefetch. Reading is safe from many threads, writing needs exclusion (the store's lock).
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_set>
#include <vector>

#include "admission_filter.h"
#include "cuckoo_index.h"
#include "gradient_batch.h"
#include "initial_values.h"
#include "optimizer.h"
#include "row_kind.h"
#include "row_slab.h"
#include "table_cut.h"
#include "touched_journal.h"

namespace cuckooflow {

// Which of `buckets` logical buckets an id belongs to.
inline uint32_t bucket_of(uint64_t id, uint32_t buckets) {
  return static_cast<uint32_t>((mix64(id ^ 0xbb67ae8584caa73bULL) >> 32) * buckets >> 32);
}

struct TableOptions {
  RowKind kind = RowKind::kFloat32;
  int64_t columns = 1;                 // weights, sums or ids a row
  int64_t dim = 1;                     // row_floats(kind, columns): equal to columns for float32
  std::vector<int64_t> half_lives_us;  // of a counter
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

  RowKind kind() const { return options_.kind; }
  int64_t columns() const { return options_.columns; }
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

  // What apply and lookup are to counter and recent tables; `as_of_us` may be null: as of the last update.
  void apply_stream(const StreamBatch& batch, const uint8_t* bucket_mask, uint32_t epoch);
  void lookup_stream(const uint64_t* ids, int64_t n, const int64_t* as_of_us, const StreamOut& out) const;

  // Sets the weights of distinct ids as they are given: what a replica does with a delta.
  void assign(const uint64_t* ids, const float* weights, int64_t n, uint32_t epoch);

  // Rows last touched after `epoch`, or all of them.
  void collect(uint32_t epoch, bool all, std::vector<uint64_t>* ids, std::vector<float>* weights) const;
  void keep_journal(bool keep) { journaling_ = keep; }
  void forget_touched(uint32_t epoch) { journal_.drop(epoch); }
  size_t journal_size() const { return journal_.size(); }

  void begin_cut(uint32_t epoch, int64_t since);
  void end_cut();
  uint32_t cut_rows() const { return cut_ ? cut_->rows() : 0; }
  uint32_t read_cut(uint32_t n, uint8_t* out) { return cut_->read(slab_, n, out); }
  const std::vector<uint8_t>& cut_filter() const { return cut_filter_; }

  // Rows of a checkpoint, into a new table. Of a chain of them the newest comes first; of an `older` one,
  // rows that are there already, or are gone, are left out. False if an id of the newest comes twice.
  bool load_rows(const uint8_t* images, uint32_t n, bool older);
  // Ids whose rows in older checkpoints of the chain do not count any more.
  void load_gone(const uint64_t* ids, int64_t n) { gone_.insert(ids, ids + n); }
  void end_load() { gone_ = {}; }
  bool load_filter(const uint8_t* image, uint64_t bytes) { return filter_.load(image, bytes); }

 private:
  // Row numbers of up to kBatch ids, kNoRow where there is none; each row's lines are on their way.
  template <bool kWrite>
  void find_batch(const uint64_t* ids, int n, uint32_t* rows) const;
  // Calls change(row, i) for every id whose logical bucket is in the mask (null: all), in order; rows are
  // made where there are none. read_rows gives kNoRow there.
  template <typename Change>
  void change_rows(const uint64_t* ids, int64_t n, const uint8_t* bucket_mask, uint32_t epoch, Change change);
  template <typename Read>
  void read_rows(const uint64_t* ids, int64_t n, Read read) const;
  bool quantised() const { return options_.kind == RowKind::kFloat16 || options_.kind == RowKind::kInt8; }
  // A row of steps keeps its scale in the last four bytes of the header: nobody counts updates in read role.
  float* scale_of(uint32_t row) const {
    return reinterpret_cast<float*>(slab_.at(row) + sizeof(RowHeader) - sizeof(float));
  }
  void clear_content(uint32_t row);
  void lookup_quantised(const uint64_t* ids, int64_t n, float* out) const;
  void assign_quantised(const uint64_t* ids, const float* weights, int64_t n, uint32_t epoch);
  uint32_t create(uint64_t id);
  void touch(uint32_t row, uint32_t epoch);
  uint32_t admission_of(uint64_t id) const {
    return options_.admission.size() == 1 ? options_.admission[0]
                                          : options_.admission[id >> (64 - kSlotBits)];
  }

  TableOptions options_;
  InitialValues initial_;
  CounterDecay decay_;
  CuckooIndex index_;
  RowSlab slab_;
  AdmissionFilter filter_;
  TouchedJournal journal_;
  bool journaling_ = false;
  uint64_t not_admitted_ = 0;
  std::unique_ptr<TableCut> cut_;
  std::vector<uint8_t> cut_filter_;
  std::unordered_set<uint64_t> gone_;  // while a chain of checkpoints is loaded
};

}  // namespace cuckooflow
