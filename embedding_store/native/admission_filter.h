// Which ids without a row have earned one, in bounded memory.
//
// Exact: a counter an id, seven ids in a cache line; an id lives in one of two lines of its logical
// bucket. Where both are full, one of them forgets its id that has not occurred for the longest; the two
// take turns. So counts are exact as long as `forgotten` is 0 (up to about two thirds of the memory), nothing
// depends on how much was ever counted, and no operation costs more than two lines. An id that is
// admitted leaves the filter.
//
// Probabilistic: each occurrence admits with probability 1 / needed. The draw is a hash of (seed, id,
// which occurrence), so that whoever counts the same occurrences again decides the same. The number of
// the occurrence comes from a counter that several ids may share where memory is short: their draws then
// depend on the order of their occurrences, the probability stays what it is.
//
// Memory and image are one region of equal size for each logical bucket, in the order of the buckets, so
// that a checkpoint can be dealt out to another number of shards.
#pragma once

#include <cstdint>
#include <vector>

namespace cuckooflow {

enum class AdmissionMode : uint8_t { kExact, kProbabilistic };

class AdmissionFilter {
 public:
  static constexpr uint32_t kMaxCount = 255;

  AdmissionFilter() = default;
  AdmissionFilter(AdmissionMode mode, uint64_t bytes, uint32_t buckets, uint64_t seed);

  bool enabled() const { return cells_ > 0; }

  // Asks for the cache lines that `admit` will need.
  void prefetch(uint64_t id, uint32_t bucket) const;

  // Whether an id without a row gets one, now that it occurred `times` more: 2 <= needed <= kMaxCount.
  bool admit(uint64_t id, uint32_t bucket, uint32_t times, uint32_t needed);

  uint64_t entries() const { return entries_; }  // ids counted now; exact mode only
  uint64_t forgotten() const;  // ids whose count was given up for another's; exact mode only

  // The whole state, and back. Sizes are equal for equal options.
  uint64_t image_bytes() const;
  void save(uint8_t* image) const;
  bool load(const uint8_t* image, uint64_t bytes) {
    return load_buckets(image, bytes, 0, static_cast<uint32_t>(forgotten_.size()));
  }
  // The state of the logical buckets from `first` to before `end` only, out of a whole image.
  bool load_buckets(const uint8_t* image, uint64_t bytes, uint32_t first, uint32_t end);

 private:
  struct alignas(64) Line {
    static constexpr int kIds = 7;

    uint64_t ids[kIds];     // those that occurred last come first
    uint8_t counts[kIds];   // 0 where there is none, which none follows
    uint8_t second_yields;  // whether the other line of a pair of full ones forgets next

    int size() const;
    int find(uint64_t id) const;  // -1 where it is not
    void erase(int at);
    void push_front(uint64_t id, uint8_t count);  // the last of a full line is forgotten
  };
  static_assert(sizeof(Line) == 64, "a line is one cache line");

  // An id's two candidate lines, counted over all regions.
  struct Pair {
    uint64_t first, second;
  };
  Pair lines_of(uint64_t id, uint32_t bucket) const;
  uint64_t draw_of(uint64_t id, uint32_t bucket) const;

  uint64_t cell_bytes() const { return mode_ == AdmissionMode::kExact ? sizeof(Line) : sizeof(uint32_t); }

  bool admit_exact(uint64_t id, uint32_t bucket, uint32_t times, uint32_t needed);
  bool admit_probabilistic(uint64_t id, uint32_t bucket, uint32_t times, uint32_t needed);

  AdmissionMode mode_ = AdmissionMode::kExact;
  uint64_t key_ = 0;
  uint32_t cells_ = 0;  // lines or draw counters of one bucket
  uint64_t entries_ = 0;
  std::vector<uint64_t> forgotten_;  // by bucket
  std::vector<Line> lines_;
  std::vector<uint32_t> draws_;
};

}  // namespace cuckooflow
