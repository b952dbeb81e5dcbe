#include "optimizer.h"

#include <limits>

namespace cuckooflow {

namespace {

// What is divided by. An accumulator that began at 0 stays there while gradients, or their squares in
// float32, are 0: this is far above the latter, so they make no step to speak of.
inline float positive(float root) { return std::max(root, 1e-19F); }

// The loops have no branches and no aliases, so that they become vector instructions: of four floats, or of
// eight where it is compiled for that below.
__attribute__((always_inline)) inline void take_step(const Optimizer& o, float* __restrict weights,
                                                     float* __restrict slots, const float* __restrict g,
                                                     int64_t n, uint32_t step) {
  switch (o.kind) {
    case OptimizerKind::kSgd:
      for (int64_t i = 0; i < n; ++i) weights[i] -= o.learning_rate * g[i];
      return;
    case OptimizerKind::kAdagrad: {  // Duchi, Hazan, Singer (2011)
      const float rate = o.learning_rate;
      for (int64_t i = 0; i < n; ++i) {
        slots[i] += g[i] * g[i];
        weights[i] -= rate * g[i] / positive(std::sqrt(slots[i]));
      }
      return;
    }
    case OptimizerKind::kAdam: {  // Kingma and Ba (2015), the end of section 2: epsilon is not corrected
      float* __restrict m = slots;
      float* __restrict v = slots + n;
      const double rate = o.learning_rate * std::sqrt(1.0 - std::pow(static_cast<double>(o.beta2), step)) /
                          (1.0 - std::pow(static_cast<double>(o.beta1), step));
      const float alpha = static_cast<float>(rate);
      for (int64_t i = 0; i < n; ++i) {
        m[i] += (1.0F - o.beta1) * (g[i] - m[i]);
        // Not v += (1 - beta2) * (g * g - v): once a square overflows, that is infinity less infinity.
        v[i] = o.beta2 * v[i] + (1.0F - o.beta2) * (g[i] * g[i]);
        weights[i] -= alpha * m[i] / (std::sqrt(v[i]) + o.epsilon);
      }
      return;
    }
    case OptimizerKind::kFtrl: {  // McMahan et al. (2013), algorithm 1, one coordinate at a time
      float* __restrict z = slots;
      float* __restrict sum = slots + n;
      const float by_rate = 1.0F / o.learning_rate;
      for (int64_t i = 0; i < n; ++i) {
        const float grown = std::min(sum[i] + g[i] * g[i], std::numeric_limits<float>::max());
        // sqrt(grown) - sqrt(sum), without the cancellation.
        const float root = std::sqrt(grown);
        const float sigma = (grown - sum[i]) / positive(root + std::sqrt(sum[i])) * by_rate;
        z[i] += g[i] - sigma * weights[i];
        sum[i] = grown;
        // What the sign of z leaves of l1; zero added makes a negative zero a plain one.
        const float shrunk = std::copysign(std::max(std::fabs(z[i]) - o.l1, 0.0F), -z[i]) + 0.0F;
        weights[i] = shrunk / ((o.beta + root) * by_rate + o.l2);
      }
      return;
    }
    case OptimizerKind::kRowwiseAdagrad: {
      double squares = 0.0;
      for (int64_t i = 0; i < n; ++i) squares += static_cast<double>(g[i]) * g[i];
      slots[0] += static_cast<float>(squares / static_cast<double>(n));
      const float rate = o.learning_rate / positive(std::sqrt(slots[0]));
      for (int64_t i = 0; i < n; ++i) weights[i] -= rate * g[i];
      return;
    }
  }
}

using Step = void (*)(const Optimizer&, float*, float*, const float*, int64_t, uint32_t);

void step_of_four(const Optimizer& o, float* weights, float* slots, const float* g, int64_t n,
                  uint32_t step) {
  take_step(o, weights, slots, g, n, step);
}

#if defined(__x86_64__)
// Without fused multiplication: the same bits on every machine.
__attribute__((target("avx2"))) void step_of_eight(const Optimizer& o, float* weights, float* slots,
                                                   const float* g, int64_t n, uint32_t step) {
  take_step(o, weights, slots, g, n, step);
}

Step step_of_this_machine() { return __builtin_cpu_supports("avx2") ? step_of_eight : step_of_four; }
#else
Step step_of_this_machine() { return step_of_four; }
#endif

const Step chosen_step = step_of_this_machine();

}  // namespace

void Optimizer::apply(float* weights, float* slots, const float* g, int64_t n, uint32_t step) const {
  chosen_step(*this, weights, slots, g, n, step);
}

}  // namespace cuckooflow
