// The table's work on rows that are not full-width weights.
#include <algorithm>

#include "table.h"

namespace cuckooflow {

template <typename Change>
void Table::change_rows(const uint64_t* ids, int64_t n, const uint8_t* bucket_mask, uint32_t epoch,
                        Change change) {
  const ChosenIds chosen(ids, n, bucket_mask, options_.buckets);
  touches_ += chosen.size();
  pipeline(true).run<true>(
      chosen.ids(), chosen.size(), [](int64_t) {},
      [&](uint32_t row, int64_t k) {
        row = without_expired(row, epoch);
        if (row == kNoRow) {
          row = create(chosen.ids()[k], epoch);
          if (row == kNoRow) {
            ++refused_new_ids_;
            return;
          }
          clear_content(row);
        }
        touch(row, epoch);
        change(row, chosen.source(k));
      });
}

void Table::clear_content(uint32_t row) {
  if (options_.kind == RowKind::kCounter) {
    CounterDecay::clear(reinterpret_cast<CounterTimes*>(slab_.weights(row)));
  } else if (options_.kind == RowKind::kRecent) {
    clear_recent(reinterpret_cast<RecentEntry*>(slab_.weights(row)), options_.columns);
  }
}

void Table::apply_stream(const StreamBatch& batch, const uint8_t* bucket_mask, uint32_t epoch) {
  const int64_t columns = options_.columns;
  if (options_.kind == RowKind::kCounter) {
    change_rows(batch.ids, batch.n, bucket_mask, epoch, [&](uint32_t row, int64_t i) {
      auto* content = reinterpret_cast<CounterTimes*>(slab_.weights(row));
      decay_.add(content, batch.amounts + i * columns, columns, batch.times_us[i]);
    });
  } else {
    change_rows(batch.ids, batch.n, bucket_mask, epoch, [&](uint32_t row, int64_t i) {
      auto* content = reinterpret_cast<RecentEntry*>(slab_.weights(row));
      add_recent(content, columns, {batch.values[i], batch.times_us[i]});
    });
  }
}

void Table::lookup_stream(const uint64_t* ids, int64_t n, const int64_t* as_of_us,
                          const StreamOut& out) const {
  const int64_t columns = options_.columns;
  if (options_.kind == RowKind::kCounter) {
    read_rows(ids, n, [&](uint32_t row, int64_t i) {
      float* sums = out.sums + i * columns;
      int64_t* times = out.times_us + i * 2;
      if (row == kNoRow) {
        CounterDecay::read_none(columns, sums, times);
      } else {
        const auto* content = reinterpret_cast<const CounterTimes*>(slab_.weights(row));
        decay_.read(content, columns, as_of_us == nullptr ? content->last_us : as_of_us[i], sums, times);
      }
    });
  } else {
    read_rows(ids, n, [&](uint32_t row, int64_t i) {
      const auto* content =
          row == kNoRow ? nullptr : reinterpret_cast<const RecentEntry*>(slab_.weights(row));
      read_recent(content, columns, as_of_us == nullptr ? INT64_MAX : as_of_us[i], out.values + i * columns,
                  out.times_us + i * columns);
    });
  }
}

void Table::lookup_quantised(const uint64_t* ids, int64_t n, float* out) const {
  const int64_t columns = options_.columns;
  read_rows(ids, n, [&](uint32_t row, int64_t i) {
    float* to = out + i * columns;
    if (row == kNoRow) {
      initial_.fill(ids[i], to, columns);
    } else if (options_.kind == RowKind::kFloat16) {
      from_halves(reinterpret_cast<const uint16_t*>(slab_.weights(row)), columns, to);
    } else {
      from_steps(reinterpret_cast<const int8_t*>(slab_.weights(row)), *scale_of(row), columns, to);
    }
  });
}

void Table::assign_quantised(const uint64_t* ids, const float* weights, int64_t n, uint32_t epoch) {
  const int64_t columns = options_.columns;
  change_rows(ids, n, nullptr, epoch, [&](uint32_t row, int64_t i) {
    const float* from = weights + i * columns;
    if (options_.kind == RowKind::kFloat16) {
      to_halves(from, columns, reinterpret_cast<uint16_t*>(slab_.weights(row)));
    } else {
      *scale_of(row) = to_steps(from, columns, reinterpret_cast<int8_t*>(slab_.weights(row)));
    }
  });
}

}  // namespace cuckooflow
