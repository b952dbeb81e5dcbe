// Weights in fewer bits, for tables in read role.
//
// float16 (IEEE 754 binary16): within 2^-11 of a value of 2^-14 to 65504, within 2^-25 absolutely below;
// larger finite values become 65504. NaN and infinities stay what they are. int8: a row's largest magnitude
// and, for each weight, the nearest of 255 equal steps: within largest / 254. A row with a NaN or an infinity
// has no steps and reads as NaN throughout, so that nobody takes it for sound.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace cuckooflow {

inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Rounding to nearest, ties to even, by the float unit's own rounding; without branches, so that loops over
// it become vector code on any machine. After M. Dukhan's FP16 library (fp16.h).
inline uint16_t half_of(float value) {
  const float bounded =
      std::fabs(value) <= 3.4028234663852886e38F ? std::min(std::max(value, -65504.0F), 65504.0F) : value;
  const uint32_t bits = float_bits(bounded);
  const uint32_t twice = bits + bits;
  const uint32_t bias = std::max(twice & 0xff000000U, 0x71000000U);
  const float scaled = (std::fabs(bounded) * 0x1.0p+112F) * 0x1.0p-110F;
  const uint32_t base = float_bits(float_of((bias >> 1) + 0x07800000U) + scaled);
  const uint32_t unsigned_half = ((base >> 13) & 0x7c00U) + (base & 0x0fffU);
  return static_cast<uint16_t>((bits >> 31) << 15 | (twice > 0xff000000U ? 0x7e00U : unsigned_half));
}

inline float float_of_half(uint16_t half) {
  const uint32_t bits = half;
  const uint32_t magnitude = bits & 0x7fffU;
  const uint32_t normal = float_bits(float_of((magnitude << 13) + (0xe0U << 23)) * 0x1.0p-112F);
  const uint32_t subnormal = float_bits(float_of(magnitude | (126U << 23)) - 0.5F);
  // A choice by arithmetic: compilers do not make a vector of one between floats.
  const auto small = static_cast<uint32_t>(static_cast<int32_t>(magnitude - 0x400U) >> 31);
  return float_of((bits & 0x8000U) << 16 | (subnormal & small) | (normal & ~small));
}

inline void to_halves(const float* weights, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = half_of(weights[i]);
}

#if defined(__x86_64__)
// Eight at a time by the processor's own conversion, where it has one: a third of the time.
__attribute__((target("avx,f16c"))) inline int64_t from_halves_f16c(const uint16_t* halves, int64_t n,
                                                                    float* out) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(halves + i));
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(eight));
  }
  return i;
}
inline const bool kHasF16c = __builtin_cpu_supports("avx") && __builtin_cpu_supports("f16c");
#endif

inline void from_halves(const uint16_t* __restrict halves, int64_t n, float* __restrict out) {
  int64_t i = 0;
#if defined(__x86_64__)
  if (kHasF16c) i = from_halves_f16c(halves, n, out);
#endif
  for (; i < n; ++i) out[i] = float_of_half(halves[i]);
}

// Writes the steps; the largest magnitude, NaN for a row that has none.
inline float to_steps(const float* weights, int64_t n, int8_t* out) {
  float largest = 0.0F;
  bool finite = true;
  for (int64_t i = 0; i < n; ++i) {
    const float magnitude = std::fabs(weights[i]);
    finite &= magnitude <= 3.4028234663852886e38F;
    largest = std::max(largest, magnitude);
  }
  if (!finite || largest == 0.0F) {
    std::fill_n(out, n, int8_t{0});
    return finite ? 0.0F : std::numeric_limits<float>::quiet_NaN();
  }
  const double steps = 127.0 / largest;
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<int8_t>(std::lrint(weights[i] * steps));
  return largest;
}

inline void from_steps(const int8_t* steps, float largest, int64_t n, float* out) {
  // The largest is multiplied last: divided by 127 it could fall below what a float can hold.
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(steps[i]) * (1.0F / 127.0F) * largest;
}

}  // namespace cuckooflow
