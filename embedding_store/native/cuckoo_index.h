// From a 64-bit id to a row number: cuckoo hashing with two candidate buckets of one cache line each.
//
// Every 64-bit value is a valid key; an empty slot is told by its tag. The index is a directory of
// segments of fixed size. A segment fills to 95 % by moving keys between their two buckets along the
// shortest path (breadth first, bounded); then it splits in two by one more bit of the hash. A key keeps
// its bucket when its segment splits, or gets back from its second to its first where that has room now. So a
// split is a few passes over 512 KiB: growth never pauses for the size of the table, and most lookups end in
// the first bucket.
//
// Reading is safe from many threads; writing needs exclusion (the owner's lock).
#pragma once

#include <cstdint>
#include <vector>

#include "hashing.h"
#include "huge_memory.h"
#include "page_filler.h"

namespace cuckooflow {

constexpr uint32_t kNoRow = 0xffffffffU;

struct alignas(64) CuckooBucket {
  static constexpr int kSlots = 5;
  static constexpr int kTagBits = 6;
  static constexpr uint32_t kTagMask = (1U << kTagBits) - 1;
  static constexpr uint32_t kOnes = 0x01041041U;  // the lowest bit of each of five tags
  static constexpr uint32_t kHighs = kOnes << (kTagBits - 1);
  static constexpr uint32_t kSpilled = 1U << 30;

  uint64_t keys[kSlots];
  uint32_t rows[kSlots];
  // Five tags of six bits, 0 for an empty slot; bit 30: a key whose first bucket this is may live in its
  // second one.
  uint32_t meta;

  uint32_t tag(int slot) const { return (meta >> (slot * kTagBits)) & kTagMask; }
  bool spilled() const { return (meta & kSpilled) != 0; }

  void set(int slot, uint64_t key, uint32_t row, uint32_t tag) {
    keys[slot] = key;
    rows[slot] = row;
    meta = (meta & ~(kTagMask << (slot * kTagBits))) | tag << (slot * kTagBits);
  }
  void clear(int slot) { meta &= ~(kTagMask << (slot * kTagBits)); }

  int slot_of(uint64_t key, uint32_t tag) const {
    for (int slot = 0; slot < kSlots; ++slot) {
      if (this->tag(slot) == tag && keys[slot] == key) return slot;
    }
    return -1;
  }

  int free_slot() const {
    for (int slot = 0; slot < kSlots; ++slot) {
      if (tag(slot) == 0) return slot;
    }
    return -1;
  }

  // All five tags are compared at once; a tag above a matching one may be a false alarm, which the key
  // comparison settles.
  uint32_t find(uint64_t key, uint32_t tag) const {
    const uint32_t difference = (meta ^ tag * kOnes) & (kSpilled - 1);
    uint32_t candidates = (difference - kOnes) & ~difference & kHighs;
    while (candidates != 0) {
      const int slot = __builtin_ctz(candidates) / kTagBits;
      if (keys[slot] == key && this->tag(slot) == tag) return rows[slot];
      candidates &= candidates - 1;
    }
    return kNoRow;
  }
};
static_assert(sizeof(CuckooBucket) == 64, "a bucket is one cache line");

class CuckooIndex {
 public:
  static constexpr uint32_t kBucketBits = 12;
  static constexpr uint32_t kBuckets = 1U << kBucketBits;
  static constexpr uint32_t kSegmentSlots = kBuckets * CuckooBucket::kSlots;
  static constexpr uint32_t kSegmentKeys = static_cast<uint32_t>(0.95 * kSegmentSlots);
  static constexpr int kSearchNodes = 1024;  // bound of the search for a path

  // Where a key may be.
  struct Place {
    uint64_t hash;
    CuckooBucket* buckets;  // of its segment

    CuckooBucket& first() const { return buckets[hash & (kBuckets - 1)]; }
    CuckooBucket& second() const { return buckets[second_number(hash)]; }
    uint32_t tag() const { return tag_of(hash); }
  };

  // Where the segments lie, by value: what a loop over ids keeps in registers. Stale once a key was added.
  class Directory {
   public:
    Place place(uint64_t hash) const {
      return {hash, reinterpret_cast<CuckooBucket*>(uintptr_t{bases_[slot(hash)]} << kSegmentShift)};
    }

   private:
    friend class CuckooIndex;
    Directory(const uint32_t* bases, uint32_t depth) : bases_(bases), shift_(63 - depth) {}
    // Depth 0 would shift by 64.
    size_t slot(uint64_t hash) const { return (hash >> 1) >> shift_; }

    const uint32_t* bases_;
    uint32_t shift_;
  };

  CuckooIndex();

  static uint64_t hash(uint64_t key) { return mix64(key + 0x9e3779b97f4a7c15ULL); }

  Place place(uint64_t key) const { return place_of(hash(key)); }
  Place place_of(uint64_t hash) const { return directory().place(hash); }
  Directory directory() const { return {bases_.data(), depth_}; }

  uint32_t find(uint64_t key) const {
    const Place at = place(key);
    const uint32_t row = at.first().find(key, at.tag());
    if (row != kNoRow || !at.first().spilled()) return row;
    return at.second().find(key, at.tag());
  }

  // Adds a key that is not there. False, and nothing is changed but for keys moved between their buckets, if
  // that would take more than `segments_max` segments.
  bool insert(uint64_t key, uint32_t row, uint64_t segments_max = ~uint64_t{0});

  // Adds a key unless it is there; whether it was not. Takes as many segments as it needs.
  bool insert_new(uint64_t key, uint32_t row) {
    const uint64_t h = hash(key);
    const Segment& segment = directory_[directory_slot(h)];
    const Place at{h, segment.buckets};
    CuckooBucket& first = at.first();
    if (first.find(key, at.tag()) != kNoRow) return false;
    if (first.spilled() && at.second().find(key, at.tag()) != kNoRow) return false;
    const int slot = first.free_slot();
    if (slot < 0 || used_[segment.number] >= kSegmentKeys) return insert(key, row);
    first.set(slot, key, row, at.tag());
    ++used_[segment.number];
    ++size_;
    ++changes_;
    return true;
  }

  // An empty index gets the segments that so many keys will need, so that none is split on the way.
  // `sparing`: none that they might do without, though some are split then.
  void reserve(uint64_t keys, bool sparing);

  // Removes a key that is there.
  void erase(uint64_t key);

  // The row numbers in a key's two buckets, whose room it needs; how many.
  int neighbours(uint64_t key, uint32_t rows[2 * CuckooBucket::kSlots]) const;

  // Grows with every insertion and removal: what was found before may be elsewhere, or no more, after.
  uint64_t changes() const { return changes_; }
  uint64_t size() const { return size_; }
  uint64_t capacity() const { return uint64_t{segments_} * kSegmentSlots; }
  std::vector<PageFiller::Piece> memory() const {
    std::vector<PageFiller::Piece> pieces;
    for (const HugeBlock& block : memory_) pieces.push_back({block.data(), block.bytes()});
    return pieces;
  }
  uint64_t bytes() const { return uint64_t{segments_} * kBuckets * sizeof(CuckooBucket); }
  uint64_t segments() const { return segments_; }
  static constexpr uint64_t kSegmentBytes = sizeof(CuckooBucket) * kBuckets;

 private:
  // A segment is aligned to its size, so that four bytes tell where it lies: the directory is read for every
  // id and shares the first cache with what is on the way.
  static constexpr uint32_t kSegmentShift = 18;
  static_assert(kSegmentBytes == uint64_t{1} << kSegmentShift);
  static uint32_t base_of(const CuckooBucket* buckets) {
    return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(buckets) >> kSegmentShift);
  }
  struct Segment {
    CuckooBucket* buckets;
    uint32_t number;
  };

  static uint32_t tag_of(uint64_t hash) {
    const uint32_t tag = (hash >> kBucketBits) & CuckooBucket::kTagMask;
    return tag + (tag == 0);
  }
  static uint32_t second_number(uint64_t hash) {
    const uint32_t first = hash & (kBuckets - 1);
    const uint32_t second = (hash >> (kBucketBits + CuckooBucket::kTagBits)) & (kBuckets - 1);
    return second == first ? first ^ 1U : second;
  }
  size_t directory_slot(uint64_t hash) const { return directory().slot(hash); }

  Segment new_segment();
  bool try_insert(const Segment& segment, uint64_t hash, uint64_t key, uint32_t row);
  bool make_room(const Segment& segment, uint64_t hash);
  void split(uint64_t hash);
  // Moves keys from their second bucket to their first where that has room by now.
  void settle(const Segment& segment);
  void find_spilled(const Segment& segment);

  std::vector<Segment> directory_;  // 2^depth_ entries; a segment of lesser depth fills several
  std::vector<uint32_t> bases_;     // of the segment of each entry, its address / 256 KiB
  std::vector<uint32_t> used_;      // keys in each segment
  std::vector<uint32_t> erased_;    // keys erased from each segment since its spilled bits were exact
  std::vector<uint8_t> depths_;     // bits of the hash that each segment's keys share
  std::vector<HugeBlock> memory_;   // eight segments a block
  uint32_t depth_ = 0;
  uint32_t segments_ = 0;
  uint64_t size_ = 0;
  uint64_t changes_ = 0;
};

}  // namespace cuckooflow
