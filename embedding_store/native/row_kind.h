// What a row holds after its header. The table keeps, finds, journals and cuts rows of every kind alike, as
// so many floats; what they mean is said here and in the headers of the kinds.
#pragma once

#include <cstdint>

#include "counter_row.h"
#include "quantised_row.h"
#include "recent_row.h"

namespace cuckooflow {

enum class RowKind : uint8_t {
  kFloat32,  // weights and optimizer slots
  kFloat16,  // weights only, in half the bytes: read role
  kInt8,     // weights only, in a quarter of the bytes, their scale in the header: read role
  kCounter,  // decayed sums
  kRecent,   // the last ids and their times
};

// Floats that a row of `columns` weights, sums or ids takes, optimizer slots not counted.
inline int64_t row_floats(RowKind kind, int64_t columns) {
  switch (kind) {
    case RowKind::kFloat32:
      return columns;
    case RowKind::kFloat16:
      return (columns + 1) / 2;
    case RowKind::kInt8:
      return (columns + 3) / 4;
    case RowKind::kCounter:
      return static_cast<int64_t>((sizeof(CounterTimes) + sizeof(double) * columns) / sizeof(float));
    case RowKind::kRecent:
      return static_cast<int64_t>(sizeof(RecentEntry) * columns / sizeof(float));
  }
  return columns;
}

// Updates of one push for one counter or recent table, n entries in the push's order. Points into memory
// that must outlive the push.
struct StreamBatch {
  const uint64_t* ids;
  const int64_t* times_us;
  const float* amounts;    // counter: (n, columns)
  const uint64_t* values;  // recent: (n,)
  int64_t n;
};

// Where a lookup in a counter or recent table writes.
struct StreamOut {
  float* sums;        // counter: (n, columns)
  uint64_t* values;   // recent: (n, columns)
  int64_t* times_us;  // counter: (n, 2), of the first and the last update; recent: (n, columns)
};

}  // namespace cuckooflow
