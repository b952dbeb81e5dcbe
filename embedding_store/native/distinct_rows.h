// A batch's distinct ids, their rows pooled by field, and the fields' gradients summed by id: what a training
// step does around its arithmetic. All are memory-bound loops over rows of a few floats.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "hashing.h"

namespace cuckooflow {

// `ids`: room for n, of which the answer tells how many were filled, in the order of their first place.
// `inverse`: for each place the number of its id; `counts`: how often each occurred. Places whose weight is 0
// are left out, with inverse 0; null weights: none are.
inline int64_t distinct_ids(const uint64_t* places, const float* weights, int64_t n, uint64_t* ids,
                            int32_t* inverse, uint32_t* counts) {
  constexpr int64_t kAhead = 16;
  constexpr uint32_t kFree = 0xffffffffU;
  int shift = 63;  // half full at most
  while (shift > 1 && (uint64_t{1} << (64 - shift)) < static_cast<uint64_t>(n) * 2) --shift;
  const uint64_t mask = (uint64_t{1} << (64 - shift)) - 1;
  std::vector<uint32_t> table(mask + 1, kFree);
  uint32_t found = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (i + kAhead < n) __builtin_prefetch(&table[mix64(places[i + kAhead]) >> shift], 1);
    if (weights != nullptr && weights[i] == 0) {
      inverse[i] = 0;
      continue;
    }
    uint64_t at = mix64(places[i]) >> shift;
    while (table[at] != kFree && ids[table[at]] != places[i]) at = (at + 1) & mask;
    if (table[at] == kFree) {
      table[at] = found;
      ids[found] = places[i];
      counts[found++] = 0;
    }
    inverse[i] = static_cast<int32_t>(table[at]);
    ++counts[table[at]];
  }
  return found;
}

namespace distinct_rows {

constexpr int64_t kAhead = 8;

// Calls a loop with the floats of a row, known at compile time for the usual ones, so that a row is a few
// vector moves.
template <typename Loop>
void of_width(int64_t dim, const Loop& loop) {
  switch (dim) {
    case 1:
      return loop(std::integral_constant<int64_t, 1>());
    case 8:
      return loop(std::integral_constant<int64_t, 8>());
    case 16:
      return loop(std::integral_constant<int64_t, 16>());
    case 32:
      return loop(std::integral_constant<int64_t, 32>());
    case 64:
      return loop(std::integral_constant<int64_t, 64>());
    default:
      return loop(dim);
  }
}

}  // namespace distinct_rows

// Where the fields of a batch's rows lie: field f of row b has the places b * places() + bounds[f] up to
// bounds[f + 1].
struct FieldPlaces {
  const int32_t* bounds;
  int64_t fields;
  int64_t batch;

  int64_t places() const { return bounds[fields]; }
};

// out[b, f] = the sum of weights[i] * rows[inverse[i]] over the field's places i; of a field of one place:
// its row.
inline void pool_rows(const float* rows, int64_t dim, const int32_t* inverse, const float* weights,
                      const FieldPlaces& in, float* out) {
  using distinct_rows::kAhead;
  const int64_t n = in.batch * in.places();
  distinct_rows::of_width(dim, [&](auto width) {
    float* to = out;
    for (int64_t begin = 0; begin < n; begin += in.places()) {
      for (int64_t f = 0; f < in.fields; ++f, to += width) {
        int64_t i = begin + in.bounds[f];
        const int64_t end = begin + in.bounds[f + 1];
        if (end - i == 1) {
          if (i + kAhead < n) __builtin_prefetch(rows + inverse[i + kAhead] * width);
          std::memcpy(to, rows + inverse[i] * width, sizeof(float) * width);
          continue;
        }
        std::memset(to, 0, sizeof(float) * width);
        for (; i < end; ++i) {
          if (i + kAhead < n) __builtin_prefetch(rows + inverse[i + kAhead] * width);
          if (weights[i] == 0) continue;
          const float* from = rows + inverse[i] * width;
          for (int64_t k = 0; k < width; ++k) to[k] += weights[i] * from[k];
        }
      }
    }
  });
}

// sums[inverse[i]] += weights[i] * gradients[b, f] for each place i of each field, in the order of places; of
// a field of one place without its weight.
inline void spread_rows(const float* gradients, int64_t dim, const int32_t* inverse, const float* weights,
                        const FieldPlaces& in, float* sums) {
  using distinct_rows::kAhead;
  const int64_t n = in.batch * in.places();
  distinct_rows::of_width(dim, [&](auto width) {
    const float* from = gradients;
    for (int64_t begin = 0; begin < n; begin += in.places()) {
      for (int64_t f = 0; f < in.fields; ++f, from += width) {
        int64_t i = begin + in.bounds[f];
        const int64_t end = begin + in.bounds[f + 1];
        const bool single = end - i == 1;
        for (; i < end; ++i) {
          if (i + kAhead < n) __builtin_prefetch(sums + inverse[i + kAhead] * width, 1);
          const float weight = single ? 1.0F : weights[i];
          if (weight == 0) continue;
          float* to = sums + inverse[i] * width;
          for (int64_t k = 0; k < width; ++k) to[k] += weight * from[k];
        }
      }
    }
  });
}

}  // namespace cuckooflow
