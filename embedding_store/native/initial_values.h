// A new row's weights: normal(0, stddev), a function of (seed, id, column) alone. So a lookup of an id
// without a row, a row created later and a replica that never heard of the id all agree.
//
// The inverse of the normal distribution's cumulative function is tabled at 4,096 quantiles and
// interpolated: one hash gives two values, without a logarithm or a cosine on the lookup path.
#pragma once

#include <cstdint>

namespace cuckooflow {

class InitialValues {
 public:
  InitialValues(uint64_t seed, float stddev);

  // Writes `dim` weights of the row `id`.
  void fill(uint64_t id, float* weights, int64_t dim) const;

 private:
  uint64_t key_;
  float stddev_;
};

}  // namespace cuckooflow
