// The store's content: tables and dense parameters under one lock, so that a lookup over several tables
// and a push are each one step, and a cut is one moment for all of them.
//
// Thread-safe. One cut at a time; that, and that deltas are taken one at a time, is the caller's care.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "dense_parameter.h"
#include "fair_lock.h"
#include "helpers.h"
#include "table.h"

namespace cuckooflow {

struct LookupRequest {
  int table;
  const uint64_t* ids;
  int64_t n;
  float* out;  // (n, dim)
};

// Of a counter or recent table.
struct StreamRequest {
  int table;
  const uint64_t* ids;
  int64_t n;
  const int64_t* as_of_us;  // null: as of each row's last update
  StreamOut out;
};

struct AssignRequest {
  int table;
  const uint64_t* ids;
  const float* weights;
  int64_t n;
};

struct EraseRequest {
  int table;
  const uint64_t* ids;
  int64_t n;
};

// Gradients of one push, checked and summed before the lock is taken.
struct Push {
  struct TablePart {
    int table;
    GradientBatch batch;
  };
  struct DensePart {
    int dense;
    const float* gradient;  // must outlive the push
  };
  struct StreamPart {
    int table;
    StreamBatch batch;
  };
  std::vector<TablePart> tables;
  std::vector<DensePart> dense;
  std::vector<StreamPart> streams;
};

class Core {
 public:
  // `backlog_max`: see TableOptions.
  explicit Core(uint32_t buckets, uint64_t backlog_max = ~uint64_t{0})
      : buckets_(buckets), backlog_max_(backlog_max) {}

  // Before first use only.
  void add_table(const TableOptions& options) { tables_.push_back(std::make_unique<Table>(options)); }
  void add_dense(const Optimizer& optimizer, std::vector<float> value, uint32_t bucket) {
    dense_.push_back({DenseParameter(optimizer, std::move(value)), bucket});
  }

  // So many threads share large lookups with their callers from now on; not while a lookup is under way.
  void set_helpers(int threads) { helpers_ = threads > 0 ? std::make_unique<Helpers>(threads) : nullptr; }

  uint32_t buckets() const { return buckets_; }
  uint64_t backlog_max() const { return backlog_max_; }
  const Table& table(int i) const { return *tables_[i]; }
  const DenseParameter& dense(int i) const { return dense_[i].parameter; }
  int table_count() const { return static_cast<int>(tables_.size()); }
  int dense_count() const { return static_cast<int>(dense_.size()); }

  // The epoch that rows touched now belong to. After a replica's assign: the version assigned.
  uint32_t epoch() const { return epoch_.load(std::memory_order_acquire); }

  // All requests see one version; `dense_out[i]` may be null. The epoch they saw.
  uint32_t lookup(const std::vector<LookupRequest>& requests, const std::vector<float*>& dense_out,
                  const std::vector<StreamRequest>& streams = {});
  // A push is applied whole: where memory runs out in the middle, the process ends rather than going on
  // with half of it, and its successor restores the last checkpoint. The same holds for assign.
  void push(const Push& push, const uint8_t* bucket_mask, int64_t event_time_us) noexcept;
  // `gone`: ids whose rows are removed, before any is assigned.
  void assign(const std::vector<AssignRequest>& requests, const std::vector<EraseRequest>& gone,
              uint32_t epoch) noexcept;

  // Evicts what is expired among rows numbered first to first + n of a table; how many. For all rows call it
  // until `first` is past row_numbers(): others get their turn between the calls.
  uint64_t evict_expired(int table, uint32_t first, uint32_t n);
  uint32_t row_numbers(int table);

  // What was touched after `base` (or all), for every table, at one moment; begins the next epoch.
  struct Collected {
    std::vector<std::vector<uint64_t>> ids;
    std::vector<std::vector<float>> weights;
    std::vector<std::vector<uint64_t>> tombstones;
    std::vector<std::vector<float>> dense;
    uint32_t version;
  };
  Collected collect(uint32_t base, bool all);
  void forget_touched(uint32_t epoch);
  // Up to here some table has forgotten what was touched, since its backlog was over its bound.
  uint32_t lost_epoch();

  struct Cut {
    uint32_t epoch;
    int64_t since;  // negative: of all
  };
  // Of rows touched after the epoch `since`, or of all where that is negative, or where it is not known any
  // more which rows went since.
  Cut begin_cut(int64_t since = -1, bool saving = false);
  // The cut of this epoch is safe: a later one may be of what changed since.
  void saved(uint32_t epoch);
  void end_cut();
  uint32_t cut_rows(int table) const { return tables_[table]->cut_rows(); }
  // Of the next `n` rows those in the cut; how many, or -1 where it was given up.
  int64_t read_cut(int table, uint32_t n, uint8_t* out);
  // What a cut may keep of rows that change before they are read.
  void bound_cut(uint64_t bytes, std::chrono::milliseconds wait);
  // To be called before a push, by who holds nothing that the cut's reader needs: while the cut keeps more
  // than its bound, waits for its reader. A cut whose reader is not done with enough after the time for that
  // is given up.
  void await_cut_room();
  const std::vector<uint8_t>& cut_filter(int table) const { return tables_[table]->cut_filter(); }
  const std::vector<uint64_t>& cut_gone(int table) const { return tables_[table]->cut_gone(); }
  const std::vector<uint8_t>& cut_dense(int dense) const { return cut_dense_[dense]; }

  void set_clock(int table, int64_t ticks) { tables_[table]->set_clock(ticks); }
  // Before the first row is loaded: there will be so many.
  void reserve(int table, uint64_t rows) { tables_[table]->reserve(rows); }
  bool load_rows(int table, const uint8_t* images, uint32_t n, bool older = false,
                 const int64_t* clock = nullptr) {
    return tables_[table]->load_rows(images, n, older, clock);
  }
  void load_gone(int table, const uint64_t* ids, int64_t n) { tables_[table]->load_gone(ids, n); }
  void end_load(int table) { tables_[table]->end_load(); }
  bool load_filter(int table, const uint8_t* image, uint64_t n) {
    return tables_[table]->load_filter(image, n);
  }
  bool load_filter_buckets(int table, const uint8_t* image, uint64_t n, uint32_t first, uint32_t end) {
    return tables_[table]->load_filter_buckets(image, n, first, end);
  }
  bool load_dense(int dense, const uint8_t* image, uint64_t n) {
    return dense_[dense].parameter.load(image, n);
  }

  struct TableStats {
    uint64_t rows, bytes, index_capacity, index_segments, not_admitted, journal, filter_entries,
        filter_forgotten;
    uint64_t free_rows, evicted_expired, evicted_memory, refused_new_ids, tombstones, cut_bytes;
    std::vector<uint32_t> slot_rows;  // (4,096)
  };
  TableStats table_stats(int table);

 private:
  // Rows of a lookup that are worth waking a helper for, and that one takes at once.
  static constexpr int64_t kSharedRows = 2048;
  static constexpr int64_t kPartRows = 512;

  struct DenseEntry {
    DenseParameter parameter;
    uint32_t bucket;
  };

  void lookup_one(const LookupRequest& request) const;
  // Under either lock.
  void count_cut_bytes();

  uint32_t buckets_;
  uint64_t backlog_max_;
  std::vector<std::unique_ptr<Table>> tables_;
  std::vector<DenseEntry> dense_;
  std::vector<std::vector<uint8_t>> cut_dense_;
  std::atomic<uint32_t> epoch_{1};
  FairLock lock_;
  std::unique_ptr<Helpers> helpers_;
  std::mutex cut_read_lock_;
  std::condition_variable cut_read_;
  std::chrono::milliseconds cut_wait_{20'000};
  uint64_t cut_bytes_max_ = uint64_t{256} << 20;
  std::atomic<uint64_t> cut_bytes_{0};
};

}  // namespace cuckooflow
