// A recent table's row: the newest entries of an id, newest first by event time; of two of one time the one
// that was pushed later. Free places have the time kNever.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "counter_row.h"

namespace cuckooflow {

struct RecentEntry {
  uint64_t value;
  int64_t time_us;
};

inline void clear_recent(RecentEntry* row, int64_t length) {
  std::fill_n(row, length, RecentEntry{0, kNever});
}

inline void add_recent(RecentEntry* row, int64_t length, RecentEntry entry) {
  int64_t at = 0;
  while (at < length && row[at].time_us > entry.time_us) ++at;
  if (at == length) return;
  std::memmove(row + at + 1, row + at, sizeof(RecentEntry) * (length - 1 - at));
  row[at] = entry;
}

// Entries up to `as_of_us`, newest first, then free places.
inline void read_recent(const RecentEntry* row, int64_t length, int64_t as_of_us, uint64_t* values,
                        int64_t* times) {
  int64_t n = 0;
  for (int64_t i = 0; row != nullptr && i < length && row[i].time_us != kNever; ++i) {
    if (row[i].time_us > as_of_us) continue;
    values[n] = row[i].value;
    times[n++] = row[i].time_us;
  }
  std::fill(values + n, values + length, uint64_t{0});
  std::fill(times + n, times + length, kNever);
}

}  // namespace cuckooflow
