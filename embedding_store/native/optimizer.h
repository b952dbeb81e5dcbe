// Gradient steps on one row, or on one dense parameter: weights and slots in place.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

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
  // one whole array after the other. The loops have no branches and no aliases, so that they
  // become vector instructions.
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
          weights[i] -= rate * g[i] / positive(std::sqrt(slots[i]));
        }
        return;
      }
      case OptimizerKind::kAdam: {  // Kingma and Ba (2015), the end of section 2: epsilon is not corrected
        float* __restrict m = slots;
        float* __restrict v = slots + n;
        const double rate = learning_rate * std::sqrt(1.0 - std::pow(static_cast<double>(beta2), step)) /
                            (1.0 - std::pow(static_cast<double>(beta1), step));
        const float alpha = static_cast<float>(rate);
        for (int64_t i = 0; i < n; ++i) {
          m[i] += (1.0F - beta1) * (g[i] - m[i]);
          // Not v += (1 - beta2) * (g * g - v): once a square overflows, that is infinity less infinity.
          v[i] = beta2 * v[i] + (1.0F - beta2) * (g[i] * g[i]);
          weights[i] -= alpha * m[i] / (std::sqrt(v[i]) + epsilon);
        }
        return;
      }
      case OptimizerKind::kFtrl: {  // McMahan et al. (2013), algorithm 1, one coordinate at a time
        float* __restrict z = slots;
        float* __restrict sum = slots + n;
        const float by_rate = 1.0F / learning_rate;
        for (int64_t i = 0; i < n; ++i) {
          const float grown = std::min(sum[i] + g[i] * g[i], std::numeric_limits<float>::max());
          // sqrt(grown) - sqrt(sum), without the cancellation.
          const float root = std::sqrt(grown);
          const float sigma = (grown - sum[i]) / positive(root + std::sqrt(sum[i])) * by_rate;
          z[i] += g[i] - sigma * weights[i];
          sum[i] = grown;
          // What the sign of z leaves of l1; zero added makes a negative zero a plain one.
          const float shrunk = std::copysign(std::max(std::fabs(z[i]) - l1, 0.0F), -z[i]) + 0.0F;
          weights[i] = shrunk / ((beta + root) * by_rate + l2);
        }
        return;
      }
      case OptimizerKind::kRowwiseAdagrad: {
        double squares = 0.0;
        for (int64_t i = 0; i < n; ++i) squares += static_cast<double>(g[i]) * g[i];
        slots[0] += static_cast<float>(squares / static_cast<double>(n));
        const float rate = learning_rate / positive(std::sqrt(slots[0]));
        for (int64_t i = 0; i < n; ++i) weights[i] -= rate * g[i];
        return;
      }
    }
  }

 private:
  // What is divided by. An accumulator that began at 0 stays there while gradients, or their squares in
  // float32, are 0: this is far above the latter, so they make no step to speak of.
  static float positive(float root) { return std::max(root, 1e-19F); }
};

}  // namespace cuckooflow
