// How often an id without a row has occurred, in bounded memory: per logical bucket a count-min sketch
// with conservative update, whose four counters of an id share one cache line. It may count too many
// (an id is then admitted early), never too few within its memory.
//
// Two generations keep it from filling up: once a quarter of a bucket's current counters are in use, its
// older generation is forgotten and the current one takes its place. Regions are per logical bucket, so
// that a checkpoint can be dealt out to another number of shards.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace cuckooflow {

class AdmissionFilter {
 public:
  static constexpr uint32_t kLine = 64;  // counters in a line
  static constexpr uint32_t kHashes = 4;
  static constexpr uint32_t kMaxCount = 255;

  AdmissionFilter() = default;
  AdmissionFilter(uint64_t bytes, uint32_t buckets);

  bool enabled() const { return lines_ > 0; }

  // Counts `times` more occurrences of an id; how often it occurred, these included.
  uint32_t add(uint64_t id, uint32_t bucket, uint32_t times);

  // The whole state, and back. Sizes are equal for equal options.
  uint64_t image_bytes() const { return counters_.size() + sizeof(uint32_t) * 2 * regions_.size(); }
  void save(uint8_t* image) const;
  bool load(const uint8_t* image, uint64_t bytes);
  // The state of the logical buckets from `first` to before `end` only, out of a whole image.
  bool load_buckets(const uint8_t* image, uint64_t bytes, uint32_t first, uint32_t end);

 private:
  struct Region {
    uint32_t current = 0;  // which of the two generations counts now
    uint32_t used = 0;     // counters of the current generation that are not zero
  };

  uint8_t* line(uint32_t bucket, uint32_t generation, uint32_t number) {
    return counters_.data() + ((uint64_t{bucket} * 2 + generation) * lines_ + number) * kLine;
  }

  uint32_t lines_ = 0;  // of one generation of one bucket
  std::vector<Region> regions_;
  std::vector<uint8_t> counters_;
};

}  // namespace cuckooflow
