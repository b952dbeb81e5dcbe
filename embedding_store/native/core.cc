#include "core.h"

#include <algorithm>
#include <mutex>
#include <shared_mutex>

namespace cuckooflow {

uint32_t Core::lookup(const std::vector<LookupRequest>& requests, const std::vector<float*>& dense_out,
                      const std::vector<StreamRequest>& streams) {
  const std::shared_lock<FairLock> hold(lock_);
  for (const LookupRequest& r : requests) lookup_one(r);
  for (const StreamRequest& r : streams) tables_[r.table]->lookup_stream(r.ids, r.n, r.as_of_us, r.out);
  for (size_t i = 0; i < dense_out.size(); ++i) {
    const std::vector<float>& value = dense_[i].parameter.value();
    std::copy(value.begin(), value.end(), dense_out[i]);
  }
  return epoch();
}

void Core::lookup_one(const LookupRequest& r) const {
  const Table& table = *tables_[r.table];
  if (helpers_ == nullptr || r.n < kSharedRows) {
    table.lookup(r.ids, r.n, r.out);
    return;
  }
  helpers_->share((r.n + kPartRows - 1) / kPartRows, [&](int64_t part) {
    const int64_t first = part * kPartRows;
    table.lookup(r.ids + first, std::min(kPartRows, r.n - first), r.out + first * table.columns());
  });
}

void Core::push(const Push& push, const uint8_t* bucket_mask, int64_t event_time_us) noexcept {
  const std::unique_lock<FairLock> hold(lock_);
  for (const auto& table : tables_) table->begin_push(event_time_us, epoch());
  for (const Push::TablePart& part : push.tables)
    tables_[part.table]->apply(part.batch, bucket_mask, epoch());
  for (const Push::StreamPart& part : push.streams)
    tables_[part.table]->apply_stream(part.batch, bucket_mask, epoch());
  for (const Push::DensePart& part : push.dense) {
    DenseEntry& entry = dense_[part.dense];
    if (bucket_mask[entry.bucket] != 0) entry.parameter.apply(part.gradient);
  }
  for (const auto& table : tables_) table->end_push(epoch());
  count_cut_bytes();
}

void Core::count_cut_bytes() {
  uint64_t bytes = 0;
  for (const auto& table : tables_) bytes += table->cut_bytes();
  if (cut_bytes_.exchange(bytes) <= bytes) return;
  // Nobody is between looking at the bytes and waiting.
  {
    const std::lock_guard<std::mutex> hold(cut_read_lock_);
  }
  cut_read_.notify_all();
}

void Core::bound_cut(uint64_t bytes, std::chrono::milliseconds wait) {
  const std::unique_lock<FairLock> hold(lock_);
  cut_bytes_max_ = bytes;
  cut_wait_ = wait;
}

void Core::await_cut_room() {
  const auto has_room = [this] { return cut_bytes_ <= cut_bytes_max_; };
  if (has_room()) return;
  {
    std::unique_lock<std::mutex> hold(cut_read_lock_);
    if (cut_read_.wait_for(hold, cut_wait_, has_room)) return;
  }
  const std::unique_lock<FairLock> hold(lock_);
  if (has_room()) return;
  for (const auto& table : tables_) table->give_up_cut();
  count_cut_bytes();
}

void Core::assign(const std::vector<AssignRequest>& requests, const std::vector<EraseRequest>& gone,
                  uint32_t epoch) noexcept {
  const std::unique_lock<FairLock> hold(lock_);
  for (const EraseRequest& r : gone) tables_[r.table]->erase(r.ids, r.n, epoch);
  for (const AssignRequest& r : requests) tables_[r.table]->assign(r.ids, r.weights, r.n, epoch);
  epoch_.store(epoch, std::memory_order_release);
}

Core::Collected Core::collect(uint32_t base, bool all) {
  // Not exclusive: lookups go on while a delta is read, pushes do not.
  const std::shared_lock<FairLock> hold(lock_);
  Collected out;
  out.ids.resize(tables_.size());
  out.weights.resize(tables_.size());
  out.tombstones.resize(tables_.size());
  for (size_t i = 0; i < tables_.size(); ++i) {
    tables_[i]->keep_journal(true);
    tables_[i]->collect(base, all, &out.ids[i], &out.weights[i]);
    if (!all) out.tombstones[i] = tables_[i]->collect_tombstones(base);
  }
  for (const DenseEntry& entry : dense_) out.dense.push_back(entry.parameter.value());
  out.version = epoch_.fetch_add(1, std::memory_order_acq_rel);
  return out;
}

void Core::forget_touched(uint32_t epoch) {
  const std::unique_lock<FairLock> hold(lock_);
  for (const auto& table : tables_) table->forget_touched(epoch);
}

uint32_t Core::lost_epoch() {
  const std::shared_lock<FairLock> hold(lock_);
  uint32_t lost = 0;
  for (const auto& table : tables_) lost = std::max(lost, table->lost_epoch());
  return lost;
}

uint64_t Core::evict_expired(int table, uint32_t first, uint32_t n) {
  const std::unique_lock<FairLock> hold(lock_);
  const uint64_t evicted = tables_[table]->evict_expired(first, n, epoch());
  count_cut_bytes();
  return evicted;
}

uint32_t Core::row_numbers(int table) {
  const std::shared_lock<FairLock> hold(lock_);
  return tables_[table]->row_numbers();
}

Core::Cut Core::begin_cut(int64_t since, bool saving) {
  const std::unique_lock<FairLock> hold(lock_);
  for (const auto& table : tables_) {
    if (table->gone_unknown(since)) since = -1;
  }
  const uint32_t epoch = epoch_.fetch_add(1, std::memory_order_acq_rel);
  for (const auto& table : tables_) table->begin_cut(epoch, since, saving);
  cut_dense_.clear();
  for (const DenseEntry& entry : dense_) {
    cut_dense_.emplace_back(entry.parameter.image_bytes());
    entry.parameter.save(cut_dense_.back().data());
  }
  return {epoch, since};
}

void Core::saved(uint32_t epoch) {
  const std::unique_lock<FairLock> hold(lock_);
  for (const auto& table : tables_) table->saved(epoch);
}

void Core::end_cut() {
  const std::unique_lock<FairLock> hold(lock_);
  for (const auto& table : tables_) table->end_cut();
  cut_dense_.clear();
  count_cut_bytes();
}

int64_t Core::read_cut(int table, uint32_t n, uint8_t* out) {
  const std::shared_lock<FairLock> hold(lock_);
  if (tables_[table]->cut_given_up()) return -1;
  const uint32_t read = tables_[table]->read_cut(n, out);
  count_cut_bytes();
  return read;
}

Core::TableStats Core::table_stats(int table) {
  const std::shared_lock<FairLock> hold(lock_);
  const Table& t = *tables_[table];
  return {t.rows(),
          t.bytes() + t.bytes_beside(),
          t.index().capacity(),
          t.index().segments(),
          t.not_admitted(),
          t.journal_size(),
          t.filter().entries(),
          t.filter().forgotten(),
          t.free_rows(),
          t.evicted_expired(),
          t.evicted_memory(),
          t.refused_new_ids(),
          t.tombstones(),
          t.cut_bytes(),
          t.slot_rows()};
}

}  // namespace cuckooflow
