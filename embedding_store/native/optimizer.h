// Gradient steps on one row, or on one dense parameter: weights and slots in place.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace cuckooflow {

enum class OptimizerKind : uint8_t { kSgd, kAdagrad, kAdam, kFtrl, kRowwiseAdagrad };

struct Optimizer {
  OptimizerKind kind = OptimizerKind::kSgd;
  float learning_rate = 0.05F;
  float initial_accumulator = 0.1F;
  float beta1 = 0.9F;
  float beta2 = 0.999F;
  float epsilon = 1e-7F;
  float beta = 1.0F;
  float l1 = 0.0F;
  float l2 = 0.0F;

  // Slot values kept beside a row of `n` weights.
  int64_t slots(int64_t n) const {
    switch (kind) {
      case OptimizerKind::kSgd:
        return 0;
      case OptimizerKind::kAdagrad:
        return n;
      case OptimizerKind::kAdam:
      case OptimizerKind::kFtrl:
        return 2 * n;
      case OptimizerKind::kRowwiseAdagrad:
        return 1;
    }
    return 0;
  }

  // Whether a step depends on how many came before it.
  bool counts_steps() const { return kind == OptimizerKind::kAdam; }

  // The slots of a row that has its first weights and was never updated.
  void init_slots(const float* weights, float* slots, int64_t n) const {
    std::fill_n(slots, this->slots(n), 0.0F);
    switch (kind) {
      case OptimizerKind::kSgd:
      case OptimizerKind::kAdam:
        return;
      case OptimizerKind::kAdagrad:
      case OptimizerKind::kRowwiseAdagrad:
        std::fill_n(slots, this->slots(n), initial_accumulator);
        return;
      case OptimizerKind::kFtrl:
        // The z from which FTRL's formula gives just these weights, so that the first step starts from
        // them. A z of 0 would throw them away with the first gradient.
        std::fill_n(slots + n, n, initial_accumulator);
        const float curvature = (beta + std::sqrt(initial_accumulator)) / learning_rate + l2;
        for (int64_t i = 0; i < n; ++i) {
          if (weights[i] == 0.0F) continue;
          slots[i] = -(weights[i] * curvature + std::copysign(l1, weights[i]));
        }
        return;
    }
  }

  // One step with gradient g; `step` counts this row's updates from 1. `slots` holds `slots(n)` floats,
  // one whole array after the other.
  void apply(float* weights, float* slots, const float* g, int64_t n, uint32_t step) const;
};

}  // namespace cuckooflow
