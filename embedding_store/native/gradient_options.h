// What is done to a row's summed gradient before the optimizer sees it.
#pragma once

#include <cmath>
#include <cstdint>

namespace cuckooflow {

struct GradientOptions {
  float clip_norm = 0.0F;  // bound of the gradient's L2 norm; 0: none
  float l2 = 0.0F;         // times the weight, added to the gradient

  bool any() const { return clip_norm > 0.0F || l2 > 0.0F; }

  // Clipped first, decayed then: the bound is on what the data asks for, and the pull towards zero is
  // the same however large that is.
  void apply(const float* gradient, const float* weights, float* out, int64_t n) const {
    float scale = 1.0F;
    if (clip_norm > 0.0F) {
      double squares = 0.0;
      for (int64_t i = 0; i < n; ++i) squares += static_cast<double>(gradient[i]) * gradient[i];
      const double norm = std::sqrt(squares);
      if (norm > clip_norm) scale = static_cast<float>(clip_norm / norm);
    }
    for (int64_t i = 0; i < n; ++i) out[i] = scale * gradient[i] + l2 * weights[i];
  }
};

}  // namespace cuckooflow
