// A dense parameter: one array, its optimizer slots and how many pushes updated it.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "optimizer.h"

namespace cuckooflow {

class DenseParameter {
 public:
  DenseParameter(const Optimizer& optimizer, std::vector<float> value)
      : optimizer_(optimizer),
        value_(std::move(value)),
        slots_(optimizer.slots(static_cast<int64_t>(value_.size()))) {
    optimizer_.init_slots(value_.data(), slots_.data(), static_cast<int64_t>(value_.size()));
  }

  const std::vector<float>& value() const { return value_; }

  void apply(const float* gradient) {
    optimizer_.apply(value_.data(), slots_.data(), gradient, static_cast<int64_t>(value_.size()), ++step_);
  }

  // Step, value and slots: what a checkpoint keeps.
  uint64_t image_bytes() const { return sizeof(uint64_t) + sizeof(float) * (value_.size() + slots_.size()); }
  void save(uint8_t* image) const {
    const uint64_t step = step_;
    std::memcpy(image, &step, sizeof(step));
    image += sizeof(step);
    if (!value_.empty()) std::memcpy(image, value_.data(), sizeof(float) * value_.size());
    image += sizeof(float) * value_.size();
    if (!slots_.empty()) std::memcpy(image, slots_.data(), sizeof(float) * slots_.size());
  }
  bool load(const uint8_t* image, uint64_t bytes) {
    if (bytes != image_bytes()) return false;
    uint64_t step = 0;
    std::memcpy(&step, image, sizeof(step));
    step_ = static_cast<uint32_t>(step);
    image += sizeof(step);
    if (!value_.empty()) std::memcpy(value_.data(), image, sizeof(float) * value_.size());
    image += sizeof(float) * value_.size();
    if (!slots_.empty()) std::memcpy(slots_.data(), image, sizeof(float) * slots_.size());
    return true;
  }

 private:
  Optimizer optimizer_;
  std::vector<float> value_;
  std::vector<float> slots_;
  uint32_t step_ = 0;
};

}  // namespace cuckooflow
