// Gradient steps on one row, or on one dense parameter: weights and slots in place.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace cuckooflow {

enum class OptimizerKind : uint8_t { kSgd, kAdagrad, kAdam };

struct Optimizer {
  OptimizerKind kind = OptimizerKind::kSgd;
  float learning_rate = 0.05F;
  float initial_accumulator = 0.1F;
  float beta1 = 0.9F;
  float beta2 = 0.999F;
  float epsilon = 1e-7F;

  // Slot values kept beside each weight.
  int64_t slots() const { return static_cast<int64_t>(kind); }

  void init_slots(float* slots, int64_t n) const {
    std::fill_n(slots, n * this->slots(), kind == OptimizerKind::kAdagrad ? initial_accumulator : 0.0F);
  }

  // One step with gradient g; `step` counts this row's updates from 1. `slots` holds `slots() * n`
  // floats, one whole array after the other.
  void apply(float* __restrict weights, float* __restrict slots, const float* __restrict g, int64_t n,
             uint32_t step) const {
    switch (kind) {
      case OptimizerKind::kSgd:
        for (int64_t i = 0; i < n; ++i) weights[i] -= learning_rate * g[i];
        return;
      case OptimizerKind::kAdagrad: {  // Duchi, Hazan, Singer (2011)
        const float rate = learning_rate;
        for (int64_t i = 0; i < n; ++i) {
          slots[i] += g[i] * g[i];
          // A starting accumulator of 0 and a gradient of 0 would divide 0 by 0: the least number there is
          // takes the root's place. No branch, so that the loop is vectorised.
          weights[i] -= rate * g[i] / std::max(std::sqrt(slots[i]), std::numeric_limits<float>::min());
        }
        return;
      }
      case OptimizerKind::kAdam: {  // Kingma and Ba (2015), the end of section 2: epsilon is not corrected
        float* m = slots;
        float* v = slots + n;
        const double rate = learning_rate * std::sqrt(1.0 - std::pow(static_cast<double>(beta2), step)) /
                            (1.0 - std::pow(static_cast<double>(beta1), step));
        const float alpha = static_cast<float>(rate);
        for (int64_t i = 0; i < n; ++i) {
          m[i] += (1.0F - beta1) * (g[i] - m[i]);
          v[i] += (1.0F - beta2) * (g[i] * g[i] - v[i]);
          weights[i] -= alpha * m[i] / (std::sqrt(v[i]) + epsilon);
        }
        return;
      }
    }
  }
};

}  // namespace cuckooflow
