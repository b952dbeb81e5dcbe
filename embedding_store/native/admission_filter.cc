#include "admission_filter.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "hashing.h"

namespace cuckooflow {

namespace {

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15ULL;

// Another hash than the index's and the buckets', so that neither decides which cell is used.
uint64_t cell_hash(uint64_t id) { return mix64(mix64(id ^ 0x3c6ef372fe94f82bULL) + 0xa54ff53a5f1d36f1ULL); }

uint32_t scaled(uint64_t bits32, uint32_t cells) { return static_cast<uint32_t>(bits32 * cells >> 32); }

}  // namespace

AdmissionFilter::AdmissionFilter(AdmissionMode mode, uint64_t bytes, uint32_t buckets, uint64_t seed)
    : mode_(mode), key_(mix64(seed + 0x5be0cd19137e2179ULL)), forgotten_(buckets) {
  cells_ = static_cast<uint32_t>(std::clamp<uint64_t>(bytes / cell_bytes() / buckets, 1, 0xffffffffU));
  if (mode == AdmissionMode::kExact) {
    lines_.resize(uint64_t{cells_} * buckets);
  } else {
    draws_.resize(uint64_t{cells_} * buckets);
  }
}

AdmissionFilter::Pair AdmissionFilter::lines_of(uint64_t id, uint32_t bucket) const {
  const uint64_t h = cell_hash(id);
  const uint32_t first = scaled(h >> 32, cells_);
  uint32_t second = scaled(h & 0xffffffffU, cells_);
  if (second == first) second = first + 1 == cells_ ? 0 : first + 1;
  const uint64_t region = uint64_t{bucket} * cells_;
  return {region + first, region + second};
}

uint64_t AdmissionFilter::draw_of(uint64_t id, uint32_t bucket) const {
  return uint64_t{bucket} * cells_ + scaled(cell_hash(id) >> 32, cells_);
}

void AdmissionFilter::prefetch(uint64_t id, uint32_t bucket) const {
  if (mode_ == AdmissionMode::kProbabilistic) {
    __builtin_prefetch(&draws_[draw_of(id, bucket)], 1);
    return;
  }
  const Pair at = lines_of(id, bucket);
  __builtin_prefetch(&lines_[at.first], 1);
  __builtin_prefetch(&lines_[at.second], 1);
}

bool AdmissionFilter::admit(uint64_t id, uint32_t bucket, uint32_t times, uint32_t needed) {
  if (times == 0) return false;
  return mode_ == AdmissionMode::kExact ? admit_exact(id, bucket, times, needed)
                                        : admit_probabilistic(id, bucket, times, needed);
}

bool AdmissionFilter::admit_exact(uint64_t id, uint32_t bucket, uint32_t times, uint32_t needed) {
  const Pair at_lines = lines_of(id, bucket);
  Line* first = &lines_[at_lines.first];
  Line* second = &lines_[at_lines.second];
  for (Line* line : {first, second}) {
    const int at = line->find(id);
    if (at < 0) continue;
    const uint32_t count = std::min(kMaxCount, line->counts[at] + std::min(times, kMaxCount));
    line->erase(at);
    if (count < needed) {
      line->push_front(id, static_cast<uint8_t>(count));
      return false;
    }
    --entries_;
    return true;
  }
  if (times >= needed) return true;
  Line* into = second->size() < first->size() ? second : first;
  if (into->size() == Line::kIds) {
    if (first->second_yields != 0) into = second;
    first->second_yields ^= 1U;
    ++forgotten_[bucket];
  } else {
    ++entries_;
  }
  into->push_front(id, static_cast<uint8_t>(times));
  return false;
}

bool AdmissionFilter::admit_probabilistic(uint64_t id, uint32_t bucket, uint32_t times, uint32_t needed) {
  uint32_t& occurred = draws_[draw_of(id, bucket)];
  const uint64_t start = mix64(mix64(id ^ key_) + key_);
  const uint64_t below = ~uint64_t{0} / needed;
  // So many draws in vain have a probability under e^-64: a bound on the work, not on the chance.
  const uint32_t most = needed * 64;
  for (uint32_t k = 0; k < std::min(times, most); ++k) {
    if (mix64(start + kGolden * ++occurred) < below) return true;
  }
  return times >= most;
}

uint64_t AdmissionFilter::forgotten() const {
  return std::accumulate(forgotten_.begin(), forgotten_.end(), uint64_t{0});
}

uint64_t AdmissionFilter::image_bytes() const {
  return sizeof(uint64_t) * forgotten_.size() + sizeof(Line) * lines_.size() +
         sizeof(uint32_t) * draws_.size();
}

void AdmissionFilter::save(uint8_t* image) const {
  const uint64_t region = cells_ * cell_bytes();
  for (size_t bucket = 0; bucket < forgotten_.size(); ++bucket, image += sizeof(uint64_t) + region) {
    std::memcpy(image, &forgotten_[bucket], sizeof(uint64_t));
    if (mode_ == AdmissionMode::kExact) {
      std::memcpy(image + sizeof(uint64_t), &lines_[bucket * cells_], region);
    } else {
      std::memcpy(image + sizeof(uint64_t), &draws_[bucket * cells_], region);
    }
  }
}

bool AdmissionFilter::load_buckets(const uint8_t* image, uint64_t bytes, uint32_t first, uint32_t end) {
  if (bytes != image_bytes()) return false;
  if (!enabled()) return true;
  if (first > end || end > forgotten_.size()) return false;
  const uint64_t region = cells_ * cell_bytes();
  for (uint64_t bucket = first; bucket < end; ++bucket) {
    const uint8_t* from = image + bucket * (sizeof(uint64_t) + region);
    std::memcpy(&forgotten_[bucket], from, sizeof(uint64_t));
    if (mode_ == AdmissionMode::kExact) {
      std::memcpy(&lines_[bucket * cells_], from + sizeof(uint64_t), region);
    } else {
      std::memcpy(&draws_[bucket * cells_], from + sizeof(uint64_t), region);
    }
  }
  entries_ = 0;
  for (const Line& line : lines_) {
    const int size = line.size();
    const bool compact =
        std::all_of(line.counts + size, line.counts + Line::kIds, [](uint8_t c) { return c == 0; });
    if (!compact || line.second_yields > 1) return false;
    entries_ += static_cast<uint64_t>(size);
  }
  return true;
}

int AdmissionFilter::Line::size() const {
  int n = 0;
  while (n < kIds && counts[n] != 0) ++n;
  return n;
}

int AdmissionFilter::Line::find(uint64_t id) const {
  for (int at = 0; at < kIds; ++at) {
    if (ids[at] == id && counts[at] != 0) return at;
  }
  return -1;
}

void AdmissionFilter::Line::erase(int at) {
  for (; at + 1 < kIds; ++at) {
    ids[at] = ids[at + 1];
    counts[at] = counts[at + 1];
  }
  ids[kIds - 1] = 0;
  counts[kIds - 1] = 0;
}

void AdmissionFilter::Line::push_front(uint64_t id, uint8_t count) {
  for (int at = kIds - 1; at > 0; --at) {
    ids[at] = ids[at - 1];
    counts[at] = counts[at - 1];
  }
  ids[0] = id;
  counts[0] = count;
}

}  // namespace cuckooflow
