#include "table.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

namespace cuckooflow {

Table::Table(const TableOptions& options)
    : options_(options),
      initial_(options.seed, options.init_stddev),
      decay_(options.half_lives_us),
      slab_(options.dim, options.optimizer.slots(options.dim)),
      clock_(options.ttl_us, options.memory_limit_bytes > 0 && options.evict_least_recent) {
  if (options.filter_bytes > 0) {
    filter_ = AdmissionFilter(options.admission_mode, options.filter_bytes, options.buckets, options.seed);
  }
}

template <bool kWrite>
void Table::find_batch(const uint64_t* ids, int n, uint32_t* rows) const {
  const int64_t floats = options_.dim + (kWrite ? options_.optimizer.slots(options_.dim) : 0);
  CuckooIndex::Place places[kBatch];
  int undecided[kBatch];
  int waiting = 0;
  for (int i = 0; i < n; ++i) {
    places[i] = index_.place(ids[i]);
    __builtin_prefetch(&places[i].first());
  }
  for (int i = 0; i < n; ++i) {
    const CuckooBucket& first = places[i].first();
    rows[i] = first.find(ids[i], places[i].tag());
    if (rows[i] != kNoRow) {
      slab_.prefetch<kWrite>(rows[i], floats);
    } else if (first.spilled()) {
      __builtin_prefetch(&places[i].second());
      undecided[waiting++] = i;
    }
  }
  for (int w = 0; w < waiting; ++w) {
    const int i = undecided[w];
    rows[i] = places[i].second().find(ids[i], places[i].tag());
    if (rows[i] != kNoRow) slab_.prefetch<kWrite>(rows[i], floats);
  }
}

// table_kinds.cc uses them too.
template void Table::find_batch<false>(const uint64_t* ids, int n, uint32_t* rows) const;
template void Table::find_batch<true>(const uint64_t* ids, int n, uint32_t* rows) const;

void Table::lookup(const uint64_t* ids, int64_t n, float* out) const {
  if (quantised()) return lookup_quantised(ids, n, out);
  const int64_t dim = options_.dim;
  uint32_t rows[kBatch];
  for (int64_t start = 0; start < n; start += kBatch) {
    const int batch = static_cast<int>(std::min<int64_t>(kBatch, n - start));
    find_batch<false>(ids + start, batch, rows);
    for (int i = 0; i < batch; ++i) {
      float* to = out + (start + i) * dim;
      if (rows[i] == kNoRow) {
        initial_.fill(ids[start + i], to, dim);
      } else {
        std::memcpy(to, slab_.weights(rows[i]), sizeof(float) * dim);
      }
    }
  }
}

uint32_t Table::create(uint64_t id, uint32_t epoch) {
  if (!place_new(id, epoch)) return kNoRow;
  const bool used_before = slab_.free_rows() > 0;
  // A row number that the journal lists for this epoch already is not to be listed again.
  const bool listed = used_before && slab_.listed_epoch(slab_.next()) == epoch;
  if (used_before && cut_) cut_->before_change(slab_, slab_.next());
  const uint32_t row = slab_.take();
  *slab_.header(row) = {id, listed ? epoch : 0, 0, stamp_};
  ++slot_rows_[slot_of(id)];
  float* weights = slab_.weights(row);
  initial_.fill(id, weights, options_.dim);
  options_.optimizer.init_slots(weights, weights + options_.dim, options_.dim);
  return row;
}

void Table::touch(uint32_t row, uint32_t epoch) {
  if (cut_) cut_->before_change(slab_, row);
  RowHeader* header = slab_.header(row);
  // Pushes may come out of the order of time.
  if (clock_.age(header->touched) > clock_.age(stamp_)) header->touched = stamp_;
  if (header->epoch == epoch) return;
  header->epoch = epoch;
  if (journaling_ && epoch > lost_epoch_) journal_.add(epoch, row, slab_);
}

void Table::apply(const GradientBatch& batch, const uint8_t* bucket_mask, uint32_t epoch) {
  const int64_t dim = options_.dim;
  uint64_t ids[kBatch];
  int64_t sources[kBatch];
  uint32_t buckets[kBatch];
  uint32_t rows[kBatch];
  const auto total = static_cast<int64_t>(batch.ids.size());
  std::vector<float> changed(options_.gradient.any() ? dim : 0);
  for (int64_t start = 0; start < total;) {
    int n = 0;
    for (; start < total && n < kBatch; ++start) {
      const uint32_t bucket = bucket_of(batch.ids[start], options_.buckets);
      if (bucket_mask[bucket] == 0) continue;
      ids[n] = batch.ids[start];
      sources[n] = start;
      buckets[n++] = bucket;
    }
    find_batch<true>(ids, n, rows);
    for (int i = 0; filter_.enabled() && i < n; ++i) {
      if (rows[i] == kNoRow) filter_.prefetch(ids[i], buckets[i]);
    }
    touches_ += n;
    const uint64_t evicted_before = evicted_memory_;
    for (int i = 0; i < n; ++i) {
      // The row that was found may have made room for an id before it.
      if (evicted_memory_ != evicted_before) rows[i] = index_.find(ids[i]);
      if (rows[i] != kNoRow && clock_.expires() && expired(rows[i])) {
        evict(rows[i], epoch);
        ++evicted_expired_;
        rows[i] = kNoRow;
      }
      if (rows[i] == kNoRow) {
        const uint32_t needed = admission_of(ids[i]);
        const uint32_t times = batch.counts[sources[i]];
        if (needed > 1 && !filter_.admit(ids[i], buckets[i], times, needed)) {
          ++not_admitted_;
          continue;
        }
        rows[i] = create(ids[i], epoch);
        if (rows[i] == kNoRow) {
          ++refused_new_ids_;
          continue;
        }
      }
      touch(rows[i], epoch);
      float* weights = slab_.weights(rows[i]);
      const uint32_t step = slab_.header(rows[i])->next_step();
      const float* gradient = batch.sums.data() + sources[i] * dim;
      if (!changed.empty()) {
        options_.gradient.apply(gradient, weights, changed.data(), dim);
        gradient = changed.data();
      }
      options_.optimizer.apply(weights, weights + dim, gradient, dim, step);
    }
  }
}

void Table::assign(const uint64_t* ids, const float* weights, int64_t n, uint32_t epoch) {
  if (quantised()) return assign_quantised(ids, weights, n, epoch);
  const int64_t dim = options_.dim;
  uint32_t rows[kBatch];
  for (int64_t start = 0; start < n; start += kBatch) {
    const int batch = static_cast<int>(std::min<int64_t>(kBatch, n - start));
    find_batch<true>(ids + start, batch, rows);
    for (int i = 0; i < batch; ++i) {
      // Asked again before a row is made: an id that comes twice must not get two.
      if (rows[i] == kNoRow) rows[i] = index_.find(ids[start + i]);
      if (rows[i] == kNoRow) rows[i] = create(ids[start + i], epoch);
      touch(rows[i], epoch);
      std::memcpy(slab_.weights(rows[i]), weights + (start + i) * dim, sizeof(float) * dim);
    }
  }
}

void Table::collect(uint32_t epoch, bool all, std::vector<uint64_t>* ids, std::vector<float>* weights) const {
  std::vector<uint32_t> rows;
  if (!all) journal_.collect(epoch, slab_, &rows);
  const size_t n = all ? slab_.used_rows() : rows.size();
  uint32_t next = 0;  // row number, where all are collected
  ids->resize(n);
  weights->resize(n * options_.dim);
  for (size_t i = 0; i < n; ++i) {
    if (!all && i + kBatch < n) slab_.prefetch<false>(rows[i + kBatch], options_.dim);
    while (all && slab_.is_free(next)) ++next;
    const uint32_t row = all ? next++ : rows[i];
    (*ids)[i] = slab_.header(row)->id;
    std::memcpy(weights->data() + i * options_.dim, slab_.weights(row), sizeof(float) * options_.dim);
  }
}

void Table::begin_cut(uint32_t epoch, int64_t since) {
  cut_ = std::make_unique<TableCut>(slab_, epoch, since);
  cut_filter_.resize(filter_.image_bytes());
  filter_.save(cut_filter_.data());
}

void Table::end_cut() {
  cut_.reset();
  cut_filter_ = {};
}

bool Table::load_rows(const uint8_t* images, uint32_t n, bool older) {
  for (uint32_t i = 0; i < n; ++i, images += slab_.row_bytes()) {
    RowHeader header;
    std::memcpy(&header, images, sizeof(header));
    if (i + kBatch < n) {
      uint64_t ahead;
      std::memcpy(&ahead, images + kBatch * slab_.row_bytes() + offsetof(RowHeader, id), sizeof(ahead));
      __builtin_prefetch(&index_.place(ahead).first(), 1);
    }
    const bool known = index_.find(header.id) != kNoRow;
    if (older && known) continue;
    if (header.epoch == RowHeader::kFree || known) return false;
    const uint32_t row = slab_.take();
    std::memcpy(slab_.at(row), images, slab_.row_bytes());
    slab_.header(row)->epoch = 0;
    if (clock_.age(header.touched) > RowClock::kAgeMax) {
      slab_.header(row)->touched = static_cast<uint16_t>(clock_.now() - RowClock::kAgeMax);
    }
    index_.insert(header.id, row);
    ++slot_rows_[slot_of(header.id)];
  }
  return true;
}

}  // namespace cuckooflow
