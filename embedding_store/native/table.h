// An embedding table: index, rows, admission and what was touched. Looked up and updated in batches that
// prefetch. Reading is safe from many threads, writing needs exclusion (the store's lock).
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "admission_filter.h"
#include "chosen_ids.h"
#include "cuckoo_index.h"
#include "gradient_batch.h"
#include "gradient_options.h"
#include "initial_values.h"
#include "optimizer.h"
#include "row_clock.h"
#include "row_kind.h"
#include "row_pipeline.h"
#include "row_slab.h"
#include "table_cut.h"
#include "tombstone_journal.h"
#include "touched_journal.h"

namespace cuckooflow {

struct TableOptions {
  RowKind kind = RowKind::kFloat32;
  int64_t columns = 1;                 // weights, sums or ids a row
  int64_t dim = 1;                     // row_floats(kind, columns): equal to columns for float32
  std::vector<int64_t> half_lives_us;  // of a counter
  Optimizer optimizer;
  GradientOptions gradient;
  float init_stddev = 0.0F;
  uint64_t seed = 0;
  std::vector<uint8_t> admission;  // one entry a slot (4,096), or one for all of them
  AdmissionMode admission_mode = AdmissionMode::kExact;
  uint64_t filter_bytes = 0;  // 0 where every slot admits at once
  uint32_t buckets = 64;
  std::vector<int64_t> ttl_us = {0};    // one entry a slot, or one for all of them; 0 for never
  uint64_t memory_limit_bytes = 0;      // of rows, index and filter; 0 for none
  bool evict_least_recent = false;      // at the limit; otherwise new ids are refused
  uint64_t backlog_max = ~uint64_t{0};  // touched rows and tombstones listed for consumers of deltas
};

class Table {
 public:
  static constexpr int kSlotBits = 12;
  static constexpr int kAhead = 32;  // rows asked for in advance, where row numbers are known

  explicit Table(const TableOptions& options);

  RowKind kind() const { return options_.kind; }
  int64_t columns() const { return options_.columns; }
  int64_t dim() const { return options_.dim; }
  uint32_t rows() const { return slab_.used_rows(); }
  uint32_t free_rows() const { return slab_.free_rows(); }
  size_t row_bytes() const { return slab_.row_bytes(); }
  const CuckooIndex& index() const { return index_; }
  // Of rows, index, filter and counts by slot: what the memory limit is for.
  uint64_t bytes() const { return slab_.bytes() + index_.bytes() + fixed_bytes(); }
  // Of what is kept for consumers of deltas and for checkpoints.
  uint64_t bytes_beside() const {
    return journal_.bytes() + tombstones_.bytes() + (cut_ ? cut_->held_bytes() : 0);
  }
  uint64_t cut_bytes() const { return cut_ ? cut_->bytes() : 0; }
  uint64_t not_admitted() const { return not_admitted_; }
  const AdmissionFilter& filter() const { return filter_; }
  uint64_t evicted_expired() const { return evicted_expired_; }
  uint64_t evicted_memory() const { return evicted_memory_; }
  uint64_t refused_new_ids() const { return refused_new_ids_; }
  size_t tombstones() const { return tombstones_.size(); }
  // (4,096) rows of each slot.
  const std::vector<uint32_t>& slot_rows() const { return slot_rows_; }

  // (n, dim) weights; initial values for ids without a row.
  void lookup(const uint64_t* ids, int64_t n, float* out) const;

  // Around the apply() of a push, also of one that brings this table nothing. The first moves the clock on;
  // the second sweeps a bounded number of rows for expired ones. Should the clock leap by more than a quarter
  // of the longest time-to-live since a sweep came around, the first sweeps all rows.
  void begin_push(int64_t event_time_us, uint32_t epoch);
  void end_push(uint32_t epoch);

  // Evicts the expired ones of rows numbered first to first + n; how many.
  uint64_t evict_expired(uint32_t first, uint32_t n, uint32_t epoch);
  uint32_t row_numbers() const { return slab_.size(); }

  // The clock, which rows of a checkpoint are read against: set it before they are loaded, and where they
  // come from several checkpoints, in ascending order of these clocks.
  bool clock_started() const { return clock_.started(); }
  int64_t clock() const { return clock_.now(); }
  void set_clock(int64_t ticks);

  // One optimizer step for each id whose logical bucket is in the mask. An expired row is evicted first, be
  // it swept by then or not, so what a push does depends on event time alone.
  void apply(const GradientBatch& batch, const uint8_t* bucket_mask, uint32_t epoch);

  // What apply and lookup are to counter and recent tables; `as_of_us` may be null: as of the last update.
  void apply_stream(const StreamBatch& batch, const uint8_t* bucket_mask, uint32_t epoch);
  void lookup_stream(const uint64_t* ids, int64_t n, const int64_t* as_of_us, const StreamOut& out) const;

  // Sets the weights of distinct ids as they are given: what a replica does with a delta.
  void assign(const uint64_t* ids, const float* weights, int64_t n, uint32_t epoch);
  // Removes the rows of those ids that have one.
  void erase(const uint64_t* ids, int64_t n, uint32_t epoch);

  // Rows last touched after `epoch`, or all of them.
  void collect(uint32_t epoch, bool all, std::vector<uint64_t>* ids, std::vector<float>* weights) const;
  void keep_journal(bool keep) { journaling_ = keep; }
  // Ids evicted after `epoch` that have no row now.
  std::vector<uint64_t> collect_tombstones(uint32_t epoch) const {
    return tombstones_.collect(epoch, [this](uint64_t id) { return index_.find(id) == kNoRow; });
  }
  // No consumer asks for what was touched up to `epoch`.
  void forget_touched(uint32_t epoch) {
    journal_.drop(epoch);
    taken_epoch_ = epoch;
    drop_tombstones();
  }
  // The newest checkpoint is of `epoch`: from there on the next one, if it is incremental, will need the ids
  // of rows that went.
  void saved(uint32_t epoch) {
    saving_ = clock_.runs();
    saved_epoch_ = epoch;
    drop_tombstones();
  }
  // What was touched in this epoch and before is not known any more: the backlog was over its bound.
  uint32_t lost_epoch() const { return lost_epoch_; }
  size_t journal_size() const { return journal_.size(); }

  // A cut of rows touched after the epoch `since` (negative: of all) holds the ids evicted after it as well.
  // If it is being `saved`, those evicted from now on are kept for the next.
  void begin_cut(uint32_t epoch, int64_t since, bool saving);
  // Whether ids evicted after this epoch are known no more.
  bool gone_unknown(int64_t since) const { return saving_ && lost_epoch_ > since; }
  void end_cut();
  void give_up_cut() {
    if (cut_) cut_->give_up();
  }
  bool cut_given_up() const { return cut_ && cut_->given_up(); }
  uint32_t cut_rows() const { return cut_ ? cut_->rows() : 0; }
  // How many of the next n row numbers are rows of the cut; their images.
  uint32_t read_cut(uint32_t n, uint8_t* out) { return cut_->read(slab_, n, out); }
  const std::vector<uint8_t>& cut_filter() const { return cut_filter_; }
  const std::vector<uint64_t>& cut_gone() const { return cut_gone_; }

  // A new table will have so many rows.
  void reserve(uint64_t rows);
  // Rows of a checkpoint, into a new table. Of a chain of them the newest comes first: its rows, then the ids
  // that it tells of as gone. Of an `older` one, rows that are there already or are gone are left out.
  // `clock`: the table's when the rows were saved, where that is another than now. False if an id of the
  // newest comes twice.
  bool load_rows(const uint8_t* images, uint32_t n, bool older, const int64_t* clock);
  void load_gone(const uint64_t* ids, int64_t n);
  void end_load() {
    gone_.reset();
    filler_.reset();
  }
  bool load_filter(const uint8_t* image, uint64_t bytes) { return filter_.load(image, bytes); }
  bool load_filter_buckets(const uint8_t* image, uint64_t bytes, uint32_t first, uint32_t end) {
    return filter_.load_buckets(image, bytes, first, end);
  }

 private:
  RowPipeline pipeline(bool with_slots) const {
    return {index_, slab_, options_.dim + (with_slots ? options_.optimizer.slots(options_.dim) : 0)};
  }
  // Calls change(row, i) for every id whose logical bucket is in the mask (null: all), in order; rows are
  // made where there are none. read_rows gives kNoRow there.
  template <typename Change>
  void change_rows(const uint64_t* ids, int64_t n, const uint8_t* bucket_mask, uint32_t epoch, Change change);
  template <typename Read>
  void read_rows(const uint64_t* ids, int64_t n, Read read) const {
    pipeline(false).run<false>(ids, n, [](int64_t) {}, read);
  }
  bool quantised() const { return options_.kind == RowKind::kFloat16 || options_.kind == RowKind::kInt8; }
  // A row of steps keeps its scale in the last four bytes of the header: nobody counts updates in read role.
  float* scale_of(uint32_t row) const { return reinterpret_cast<float*>(slab_.header(row) + 1) - 1; }
  void clear_content(uint32_t row);
  void lookup_quantised(const uint64_t* ids, int64_t n, float* out) const;
  void assign_quantised(const uint64_t* ids, const float* weights, int64_t n, uint32_t epoch);
  // A new row's number; kNoRow where there is no room under the memory limit.
  uint32_t create(uint64_t id, uint32_t epoch);
  // Enters the id in the index with the slab's next row number, evicting if it must and may.
  bool place_new(uint64_t id, uint32_t epoch);
  bool evict_sampled(uint32_t epoch);
  uint32_t oldest_of(const uint32_t* rows, int n) const;
  void evict_for_memory(uint32_t row, uint32_t epoch);
  void evict(uint32_t row, uint32_t epoch);
  bool expired(uint32_t row) const;
  // The row; kNoRow if its time-to-live was over, in which case it is evicted.
  uint32_t without_expired(uint32_t row, uint32_t epoch);
  // Evicts what is expired at `as_of`, the clock's time or a later one.
  uint64_t sweep(uint32_t first, uint32_t n, int64_t as_of, uint32_t epoch);
  void sweep_on(uint32_t epoch);
  uint64_t fixed_bytes() const { return filter_.image_bytes() + slot_rows_.size() * sizeof(uint32_t); }
  uint64_t backlog() const { return journal_.size() + tombstones_.size(); }
  void bound_backlog();
  void drop_tombstones() {
    constexpr uint32_t kAll = 0xffffffffU;
    tombstones_.drop(std::min(journaling_ ? taken_epoch_ : kAll, saving_ ? saved_epoch_ : kAll));
  }
  void touch(uint32_t row, uint32_t epoch);
  static uint32_t slot_of(uint64_t id) { return static_cast<uint32_t>(id >> (64 - kSlotBits)); }
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
  TombstoneJournal tombstones_;
  RowClock clock_;
  std::vector<uint32_t> slot_rows_ = std::vector<uint32_t>(size_t{1} << kSlotBits);
  uint16_t stamp_ = 0;         // of the rows of this push
  uint64_t touches_ = 0;       // rows touched that the clock has not counted yet
  uint32_t hand_ = 0;          // the next row that the sweep comes to
  uint64_t sweep_credit_ = 0;  // rows that it is behind
  int64_t lap_began_ = 0;      // when it was last at row 0
  uint64_t draws_ = 0;         // rows drawn for eviction
  uint32_t lost_epoch_ = 0;
  bool journaling_ = false;
  bool saving_ = false;  // incremental checkpoints need tombstones
  uint32_t taken_epoch_ = 0;
  uint32_t saved_epoch_ = 0;
  uint64_t not_admitted_ = 0;
  uint64_t evicted_expired_ = 0;
  uint64_t evicted_memory_ = 0;
  uint64_t refused_new_ids_ = 0;
  std::unique_ptr<TableCut> cut_;
  std::vector<uint8_t> cut_filter_;
  std::vector<uint64_t> cut_gone_;
  std::unique_ptr<CuckooIndex> gone_;   // a set: of ids that newer links of a chain tell of
  std::unique_ptr<PageFiller> filler_;  // while rows are loaded; last, for it works in the memory of others
};

}  // namespace cuckooflow
