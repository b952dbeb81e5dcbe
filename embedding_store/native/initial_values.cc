#include "initial_values.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "hashing.h"

namespace cuckooflow {

namespace {

constexpr int kCellBits = 12;
constexpr int kCells = 1 << kCellBits;
constexpr uint64_t kGolden = 0x9e3779b97f4a7c15ULL;

// Ends of the outermost cells, so that the mean within them is that of the distribution's tail.
constexpr float kTailEnd = 4.03F;

// P. J. Acklam's rational approximation of the inverse normal distribution (relative error < 1.2e-9).
double normal_quantile(double p) {
  if (p > 0.5) return -normal_quantile(1.0 - p);
  if (p < 0.02425) {
    const double q = std::sqrt(-2.0 * std::log(p));
    return (((((-7.784894002430293e-03 * q - 3.223964580411365e-01) * q - 2.400758277161838e+00) * q -
              2.549732539343734e+00) *
                 q +
             4.374664141464968e+00) *
                q +
            2.938163982698783e+00) /
           ((((7.784695709041462e-03 * q + 3.224671290700398e-01) * q + 2.445134137142996e+00) * q +
             3.754408661907416e+00) *
                q +
            1.0);
  }
  const double q = p - 0.5;
  const double r = q * q;
  return (((((-3.969683028665376e+01 * r + 2.209460984245205e+02) * r - 2.759285104469687e+02) * r +
            1.383577518672690e+02) *
               r -
           3.066479806614716e+01) *
              r +
          2.506628277459239e+00) *
         q /
         (((((-5.447609879822406e+01 * r + 1.615858368580409e+02) * r - 1.556989798598866e+02) * r +
            6.680131188771972e+01) *
               r -
           1.328068155288572e+01) *
              r +
          1.0);
}

const std::array<float, kCells + 1>& quantiles() {
  static const std::array<float, kCells + 1> table = [] {
    std::array<float, kCells + 1> values{};
    for (int k = 1; k < kCells; ++k) {
      values[k] = static_cast<float>(normal_quantile(static_cast<double>(k) / kCells));
    }
    values[0] = -kTailEnd;
    values[kCells] = kTailEnd;
    return values;
  }();
  return table;
}

float normal_from_bits(const std::array<float, kCells + 1>& table, uint32_t bits) {
  const uint32_t cell = bits >> (32 - kCellBits);
  const float within =
      static_cast<float>(bits & ((1U << (32 - kCellBits)) - 1)) * (1.0F / (1U << (32 - kCellBits)));
  return table[cell] + within * (table[cell + 1] - table[cell]);
}

}  // namespace

InitialValues::InitialValues(uint64_t seed, float stddev) : key_(mix64(seed + kGolden)), stddev_(stddev) {
  quantiles();
}

void InitialValues::fill(uint64_t id, float* weights, int64_t dim) const {
  if (stddev_ == 0.0F) {
    std::fill_n(weights, dim, 0.0F);
    return;
  }
  const auto& table = quantiles();
  const uint64_t start = mix64(mix64(id ^ key_) + key_);
  for (int64_t column = 0; column < dim; column += 2) {
    const uint64_t bits = mix64(start + kGolden * static_cast<uint64_t>(column / 2 + 1));
    weights[column] = stddev_ * normal_from_bits(table, static_cast<uint32_t>(bits));
    if (column + 1 < dim) {
      weights[column + 1] = stddev_ * normal_from_bits(table, static_cast<uint32_t>(bits >> 32));
    }
  }
}

}  // namespace cuckooflow
