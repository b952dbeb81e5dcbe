#include "table.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

namespace cuckooflow {

namespace {

// Whole cache lines without a call, which for one row would take as long as the copy.
inline void copy_floats(const float* from, int64_t n, float* to) {
  constexpr int64_t kLine = 16;
  int64_t i = 0;
  for (; i + kLine <= n; i += kLine) std::memcpy(to + i, from + i, sizeof(float) * kLine);
  if (i < n) std::memcpy(to + i, from + i, sizeof(float) * (n - i));
}

}  // namespace

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

void Table::lookup(const uint64_t* ids, int64_t n, float* out) const {
  if (quantised()) return lookup_quantised(ids, n, out);
  const int64_t dim = options_.dim;
  const RowSlab::Addresses addresses = slab_.addresses();
  read_rows(ids, n, [&, addresses, out, dim](uint32_t row, int64_t i) {
    float* to = out + i * dim;
    if (row == kNoRow) {
      initial_.fill(ids[i], to, dim);
    } else {
      copy_floats(addresses.weights(row), dim, to);
    }
  });
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
  const ChosenIds chosen(batch.ids().data(), static_cast<int64_t>(batch.ids().size()), bucket_mask,
                         options_.buckets);
  touches_ += chosen.size();
  std::vector<float> changed(options_.gradient.any() ? dim : 0);
  const auto missing = [&](int64_t k) {
    const uint64_t id = chosen.ids()[k];
    if (filter_.enabled()) filter_.prefetch(id, bucket_of(id, options_.buckets));
  };
  pipeline(true).run<true>(chosen.ids(), chosen.size(), missing, [&](uint32_t row, int64_t k) {
    const uint64_t id = chosen.ids()[k];
    const int64_t source = chosen.source(k);
    row = without_expired(row, epoch);
    if (row == kNoRow) {
      const uint32_t needed = admission_of(id);
      if (needed > 1 && !filter_.admit(id, bucket_of(id, options_.buckets), batch.count(source), needed)) {
        ++not_admitted_;
        return;
      }
      row = create(id, epoch);
      if (row == kNoRow) {
        ++refused_new_ids_;
        return;
      }
    }
    touch(row, epoch);
    float* weights = slab_.weights(row);
    // Others need not write to the header's cache line where nothing else does.
    const uint32_t step = options_.optimizer.counts_steps() ? slab_.header(row)->next_step() : 1;
    const float* gradient = batch.gradient(source);
    if (!changed.empty()) {
      options_.gradient.apply(gradient, weights, changed.data(), dim);
      gradient = changed.data();
    }
    options_.optimizer.apply(weights, weights + dim, gradient, dim, step);
  });
}

void Table::assign(const uint64_t* ids, const float* weights, int64_t n, uint32_t epoch) {
  if (quantised()) return assign_quantised(ids, weights, n, epoch);
  const int64_t dim = options_.dim;
  pipeline(true).run<true>(
      ids, n, [](int64_t) {},
      [&](uint32_t row, int64_t i) {
        if (row == kNoRow) row = create(ids[i], epoch);
        touch(row, epoch);
        std::memcpy(slab_.weights(row), weights + i * dim, sizeof(float) * dim);
      });
}

void Table::collect(uint32_t epoch, bool all, std::vector<uint64_t>* ids, std::vector<float>* weights) const {
  std::vector<uint32_t> rows;
  if (!all) journal_.collect(epoch, slab_, &rows);
  const size_t n = all ? slab_.used_rows() : rows.size();
  uint32_t next = 0;  // row number, where all are collected
  ids->resize(n);
  weights->resize(n * options_.dim);
  for (size_t i = 0; i < n; ++i) {
    if (!all && i + kAhead < n) {
      slab_.prefetch_header(rows[i + kAhead]);
      slab_.prefetch<false>(rows[i + kAhead], options_.dim);
    }
    while (all && slab_.is_free(next)) ++next;
    const uint32_t row = all ? next++ : rows[i];
    (*ids)[i] = slab_.header(row)->id;
    std::memcpy(weights->data() + i * options_.dim, slab_.weights(row), sizeof(float) * options_.dim);
  }
}

void Table::begin_cut(uint32_t epoch, int64_t since, bool saving) {
  saving_ |= saving && clock_.runs();
  cut_ = std::make_unique<TableCut>(slab_, epoch, since);
  cut_filter_.resize(filter_.image_bytes());
  filter_.save(cut_filter_.data());
  if (since >= 0) cut_gone_ = tombstones_.since(static_cast<uint32_t>(since));
}

void Table::end_cut() {
  cut_.reset();
  cut_filter_ = {};
  cut_gone_ = {};
}

void Table::reserve(uint64_t rows) {
  index_.reserve(rows, options_.memory_limit_bytes > 0);
  constexpr uint64_t kWorthAThread = uint64_t{64} << 20;
  if (rows * slab_.row_bytes() < kWorthAThread) return;
  std::vector<PageFiller::Piece> pieces = slab_.reserve(static_cast<uint32_t>(rows));
  // The index last, which is first: it is written to all over from the beginning.
  const std::vector<PageFiller::Piece> of_index = index_.memory();
  pieces.insert(pieces.end(), of_index.begin(), of_index.end());
  filler_ = std::make_unique<PageFiller>(std::move(pieces));
}

bool Table::load_rows(const uint8_t* images, uint32_t n, bool older, const int64_t* clock) {
  const int64_t elapsed = clock == nullptr ? 0 : clock_.now() - *clock;
  for (uint32_t i = 0; i < n; ++i, images += slab_.row_bytes()) {
    RowHeader header;
    std::memcpy(&header, images, sizeof(header));
    if (i + kAhead < n) {
      uint64_t ahead;
      std::memcpy(&ahead, images + kAhead * slab_.row_bytes() + offsetof(RowHeader, id), sizeof(ahead));
      __builtin_prefetch(&index_.place(ahead).first(), 1);
    }
    if (header.epoch == RowHeader::kFree) return false;
    if (older && gone_ && gone_->find(header.id) != kNoRow) continue;
    if (!index_.insert_new(header.id, slab_.next())) {
      if (older) continue;
      return false;
    }
    const uint32_t row = slab_.take();
    slab_.load(row, images);
    slab_.header(row)->epoch = 0;
    const int64_t age = clock_.age_at(clock_.now() - elapsed, header.touched) + elapsed;
    slab_.header(row)->touched = static_cast<uint16_t>(clock_.now() - std::min(age, RowClock::kAgeMax));
    ++slot_rows_[slot_of(header.id)];
  }
  return true;
}

void Table::load_gone(const uint64_t* ids, int64_t n) {
  if (n > 0 && !gone_) gone_ = std::make_unique<CuckooIndex>();
  for (int64_t i = 0; i < n; ++i) {
    if (gone_->find(ids[i]) == kNoRow) gone_->insert(ids[i], 0);
  }
}

}  // namespace cuckooflow
