#include "admission_filter.h"

#include <algorithm>

#include "hashing.h"

namespace cuckooflow {

AdmissionFilter::AdmissionFilter(uint64_t bytes, uint32_t buckets)
    : lines_(static_cast<uint32_t>(std::max<uint64_t>(1, bytes / (uint64_t{2} * kLine * buckets)))),
      regions_(buckets),
      counters_(uint64_t{2} * kLine * lines_ * buckets) {}

uint32_t AdmissionFilter::add(uint64_t id, uint32_t bucket, uint32_t times) {
  // Another hash than the index's and the buckets', so that neither decides which line is used.
  const uint64_t h = mix64(mix64(id ^ 0x3c6ef372fe94f82bULL) + 0xa54ff53a5f1d36f1ULL);
  const auto number = static_cast<uint32_t>((h >> 32) * lines_ >> 32);
  Region& region = regions_[bucket];
  uint8_t* now = line(bucket, region.current, number);
  const uint8_t* before = line(bucket, region.current ^ 1U, number);
  uint32_t least_now = kMaxCount;
  uint32_t least_before = kMaxCount;
  for (uint32_t k = 0; k < kHashes; ++k) {
    const uint32_t at = (h >> (6 * k)) & (kLine - 1);
    least_now = std::min<uint32_t>(least_now, now[at]);
    least_before = std::min<uint32_t>(least_before, before[at]);
  }
  const auto raised = static_cast<uint8_t>(std::min(kMaxCount, least_now + std::min(times, kMaxCount)));
  for (uint32_t k = 0; k < kHashes; ++k) {
    uint8_t& counter = now[(h >> (6 * k)) & (kLine - 1)];
    if (counter == 0 && raised > 0) ++region.used;
    counter = std::max(counter, raised);
  }
  if (region.used > lines_ * kLine / 4) {
    region.current ^= 1U;
    region.used = 0;
    std::memset(line(bucket, region.current, 0), 0, uint64_t{lines_} * kLine);
  }
  return raised + least_before;
}

void AdmissionFilter::save(uint8_t* image) const {
  for (const Region& region : regions_) {
    std::memcpy(image, &region, sizeof(region));
    image += sizeof(region);
  }
  if (!counters_.empty()) std::memcpy(image, counters_.data(), counters_.size());
}

bool AdmissionFilter::load(const uint8_t* image, uint64_t bytes) {
  return load_buckets(image, bytes, 0, static_cast<uint32_t>(regions_.size()));
}

bool AdmissionFilter::load_buckets(const uint8_t* image, uint64_t bytes, uint32_t first, uint32_t end) {
  if (bytes != image_bytes()) return false;
  if (!enabled()) return true;
  if (first > end || end > regions_.size()) return false;
  const uint8_t* counters = image + regions_.size() * sizeof(Region);
  const uint64_t of_bucket = uint64_t{2} * lines_ * kLine;
  for (uint32_t bucket = first; bucket < end; ++bucket) {
    Region& region = regions_[bucket];
    std::memcpy(&region, image + bucket * sizeof(region), sizeof(region));
    if (region.current > 1) return false;
  }
  if (!counters_.empty()) {
    std::memcpy(counters_.data() + first * of_bucket, counters + first * of_bucket,
                (end - first) * of_bucket);
  }
  return true;
}

}  // namespace cuckooflow
