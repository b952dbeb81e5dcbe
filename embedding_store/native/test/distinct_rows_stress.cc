// Distinct ids, rows at places and sums by id against plain loops, in arrays that are as large as they must
// be.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <vector>

#include "../distinct_rows.h"

namespace cuckooflow {

namespace {

void expect(bool holds) {
  if (holds) return;
  std::fprintf(stderr, "stress: expected distinct ids, their rows and sums to be those of plain loops\n");
  std::abort();
}

}  // namespace

void stress_distinct_rows(uint64_t seed) {
  std::mt19937_64 random(seed);
  for (int round = 0; round < 300; ++round) {
    const size_t n = random() % 3'000;
    const uint64_t values = 1 + random() % 4'000;
    std::vector<uint64_t> places(n), ids(n);
    std::vector<float> weights(n);
    std::vector<int32_t> inverse(n);
    std::vector<uint32_t> counts(n);
    for (size_t i = 0; i < n; ++i) {
      const uint64_t value = random() % values;
      places[i] = value % 2 == 0 ? value : ~value;
      weights[i] = static_cast<float>(random() % 3);
    }
    const bool all = round % 2 == 0;
    const int64_t found = distinct_ids(places.data(), all ? nullptr : weights.data(), static_cast<int64_t>(n),
                                       ids.data(), inverse.data(), counts.data());
    std::map<uint64_t, uint32_t> plain;
    for (size_t i = 0; i < n; ++i)
      if (all || weights[i] != 0) ++plain[places[i]];
    expect(found == static_cast<int64_t>(plain.size()));
    for (int64_t k = 0; k < found; ++k) expect(plain[ids[k]] == counts[k]);
    for (size_t i = 0; i < n; ++i)
      if (all || weights[i] != 0) expect(ids[inverse[i]] == places[i]);
    if (found == 0) continue;

    const int64_t dims[] = {1, 8, 16, 32, 64, 3};
    const int64_t dim = dims[round % 6];
    // Rows of some places in fields of one, two... places; what is left over of `n` is not used.
    std::vector<int32_t> bounds{0};
    for (int32_t width = 1; static_cast<size_t>(bounds.back() + width) <= n && width <= 4; ++width)
      bounds.push_back(bounds.back() + width);
    const int64_t fields = static_cast<int64_t>(bounds.size()) - 1;
    const int64_t width = bounds.back();
    if (fields == 0) continue;
    const int64_t batch = static_cast<int64_t>(n) / width;
    const FieldPlaces in{bounds.data(), fields, batch};
    std::vector<float> rows(found * dim), pooled(batch * fields * dim), sums(found * dim),
        expected(found * dim);
    for (float& value : rows) value = static_cast<float>(random() % 100);
    pool_rows(rows.data(), dim, inverse.data(), weights.data(), in, pooled.data());
    spread_rows(pooled.data(), dim, inverse.data(), weights.data(), in, sums.data());
    for (int64_t at = 0; at < batch * fields; ++at) {
      const int64_t b = at / fields, f = at % fields;
      for (int64_t k = 0; k < dim; ++k) {
        float sum = 0;
        const float of_field = pooled[at * dim + k];
        for (int64_t i = b * width + bounds[f]; i < b * width + bounds[f + 1]; ++i) {
          const float weight = f == 0 ? 1.0F : weights[i];
          sum += weight * rows[inverse[i] * dim + k];
          expected[inverse[i] * dim + k] += weight * of_field;
        }
        expect(sum == of_field);
      }
    }
    expect(sums == expected);
  }
}

}  // namespace cuckooflow
