#include "cuckoo_index.h"

#include <algorithm>
#include <bitset>
#include <cassert>

namespace cuckooflow {

namespace {
constexpr size_t kSegmentsPerBlock = HugeBlock::kAlign / CuckooIndex::kSegmentBytes;
}  // namespace

CuckooIndex::CuckooIndex() {
  directory_.push_back(new_segment());
  bases_.push_back(base_of(directory_.back().buckets));
}

CuckooIndex::Segment CuckooIndex::new_segment() {
  if (segments_ % kSegmentsPerBlock == 0) {
    memory_.emplace_back(HugeBlock::kAlign, memory_.empty() ? HugeBlock::kAlign : 0);
  }
  auto* buckets = reinterpret_cast<CuckooBucket*>(memory_.back().data() +
                                                  (segments_ % kSegmentsPerBlock) * kSegmentBytes);
  used_.push_back(0);
  erased_.push_back(0);
  depths_.push_back(0);
  return {buckets, segments_++};
}

bool CuckooIndex::insert(uint64_t key, uint32_t row, uint64_t segments_max) {
  ++changes_;
  const uint64_t h = hash(key);
  while (!try_insert(directory_[directory_slot(h)], h, key, row)) {
    if (segments_ >= segments_max) return false;
    split(h);
  }
  ++size_;
  return true;
}

void CuckooIndex::reserve(uint64_t keys, bool sparing) {
  if (size_ > 0 || segments_ > 1) return;
  // Hashes do not fill all segments alike: their keys differ by about 0.7 %.
  const auto room = static_cast<uint64_t>(kSegmentKeys * (sparing ? 1.0 : 0.98));
  uint32_t depth = 0;
  while (sparing ? room << (depth + 1) <= keys : room << depth < keys) ++depth;
  while (segments_ < 1U << depth) {
    directory_.push_back(new_segment());
    bases_.push_back(base_of(directory_.back().buckets));
  }
  depth_ = depth;
  std::fill(depths_.begin(), depths_.end(), static_cast<uint8_t>(depth));
}

void CuckooIndex::erase(uint64_t key) {
  ++changes_;
  const uint64_t h = hash(key);
  const Segment segment = directory_[directory_slot(h)];
  const Place at{h, segment.buckets};
  CuckooBucket* bucket = &at.first();
  int slot = bucket->slot_of(key, at.tag());
  if (slot < 0) {
    bucket = &at.second();
    slot = bucket->slot_of(key, at.tag());
  }
  assert(slot >= 0 && "only keys that are there are erased");
  bucket->clear(slot);
  --used_[segment.number];
  --size_;
  // The first bucket stays marked as spilled: others of its keys may live in their second one. Lest in the
  // course of time every bucket is, the marks are found anew once as many keys were erased as fit in.
  if (++erased_[segment.number] == kSegmentSlots) find_spilled(segment);
}

void CuckooIndex::settle(const Segment& segment) {
  for (uint32_t b = 0; b < kBuckets; ++b) {
    CuckooBucket& away = segment.buckets[b];
    for (int slot = 0; slot < CuckooBucket::kSlots; ++slot) {
      const uint32_t tag = away.tag(slot);
      if (tag == 0) continue;
      const uint32_t first = hash(away.keys[slot]) & (kBuckets - 1);
      const int room = first == b ? -1 : segment.buckets[first].free_slot();
      if (room < 0) continue;
      segment.buckets[first].set(room, away.keys[slot], away.rows[slot], tag);
      away.clear(slot);
    }
  }
  find_spilled(segment);
}

void CuckooIndex::find_spilled(const Segment& segment) {
  erased_[segment.number] = 0;
  for (uint32_t b = 0; b < kBuckets; ++b) segment.buckets[b].meta &= ~CuckooBucket::kSpilled;
  for (uint32_t b = 0; b < kBuckets; ++b) {
    for (int slot = 0; slot < CuckooBucket::kSlots; ++slot) {
      if (segment.buckets[b].tag(slot) == 0) continue;
      const uint32_t first = hash(segment.buckets[b].keys[slot]) & (kBuckets - 1);
      if (first != b) segment.buckets[first].meta |= CuckooBucket::kSpilled;
    }
  }
}

int CuckooIndex::neighbours(uint64_t key, uint32_t rows[2 * CuckooBucket::kSlots]) const {
  const Place at = place(key);
  int n = 0;
  for (const CuckooBucket* bucket : {&at.first(), &at.second()}) {
    for (int slot = 0; slot < CuckooBucket::kSlots; ++slot) {
      if (bucket->tag(slot) != 0) rows[n++] = bucket->rows[slot];
    }
  }
  return n;
}

bool CuckooIndex::try_insert(const Segment& segment, uint64_t hash, uint64_t key, uint32_t row) {
  if (used_[segment.number] >= kSegmentKeys) return false;
  const Place at{hash, segment.buckets};
  for (int attempt = 0; attempt < 2; ++attempt) {
    int slot = at.first().free_slot();
    if (slot >= 0) {
      at.first().set(slot, key, row, at.tag());
      ++used_[segment.number];
      return true;
    }
    slot = at.second().free_slot();
    if (slot >= 0) {
      at.second().set(slot, key, row, at.tag());
      at.first().meta |= CuckooBucket::kSpilled;
      ++used_[segment.number];
      return true;
    }
    if (attempt == 0 && !make_room(segment, hash)) return false;
  }
  assert(false && "a path was found, so one of the two buckets has a free slot");
  return false;
}

bool CuckooIndex::make_room(const Segment& segment, uint64_t hash) {
  // Breadth first from both buckets: node k's bucket is reached by moving the key in `slot` of its
  // parent's bucket there. A bucket is entered once, so a path never crosses itself.
  struct Node {
    uint32_t bucket;
    int16_t parent;
    int16_t slot;
  };
  Node nodes[kSearchNodes];
  std::bitset<kBuckets> seen;
  int count = 0;
  for (const uint32_t start : {static_cast<uint32_t>(hash & (kBuckets - 1)), second_number(hash)}) {
    nodes[count++] = {start, -1, -1};
    seen.set(start);
  }
  for (int at = 0; at < count; ++at) {
    const CuckooBucket& bucket = segment.buckets[nodes[at].bucket];
    for (int slot = 0; slot < CuckooBucket::kSlots; ++slot) {
      const uint64_t h = CuckooIndex::hash(bucket.keys[slot]);
      const uint32_t first = h & (kBuckets - 1);
      const uint32_t other = first == nodes[at].bucket ? second_number(h) : first;
      if (seen.test(other)) continue;
      int into = segment.buckets[other].free_slot();
      if (into < 0) {
        if (count < kSearchNodes) {
          nodes[count++] = {other, static_cast<int16_t>(at), static_cast<int16_t>(slot)};
          seen.set(other);
        }
        continue;
      }
      // Move keys from the free end of the path back to its start.
      uint32_t to = other;
      int from_slot = slot;
      for (int node = at; node >= 0; node = nodes[node].parent) {
        CuckooBucket& source = segment.buckets[nodes[node].bucket];
        const uint64_t moved = CuckooIndex::hash(source.keys[from_slot]);
        segment.buckets[to].set(into, source.keys[from_slot], source.rows[from_slot], tag_of(moved));
        if ((moved & (kBuckets - 1)) != to) {
          segment.buckets[moved & (kBuckets - 1)].meta |= CuckooBucket::kSpilled;
        }
        source.clear(from_slot);
        to = nodes[node].bucket;
        into = from_slot;
        from_slot = nodes[node].slot;
      }
      return true;
    }
  }
  return false;
}

void CuckooIndex::split(uint64_t hash) {
  const Segment old = directory_[directory_slot(hash)];
  const uint32_t depth = depths_[old.number];
  if (depth == depth_) {  // the directory needs one more bit: every entry twice
    std::vector<Segment> wider;
    wider.reserve(directory_.size() * 2);
    for (const Segment& entry : directory_) wider.insert(wider.end(), 2, entry);
    directory_ = std::move(wider);
    bases_.resize(directory_.size());
    ++depth_;
  }
  const Segment fresh = new_segment();
  depths_[old.number] = depths_[fresh.number] = static_cast<uint8_t>(depth + 1);
  const uint64_t bit = uint64_t{1} << (63 - depth);
  for (uint32_t b = 0; b < kBuckets; ++b) {
    CuckooBucket& from = old.buckets[b];
    CuckooBucket& to = fresh.buckets[b];
    for (int slot = 0; slot < CuckooBucket::kSlots; ++slot) {
      const uint32_t tag = from.tag(slot);
      if (tag == 0 || (CuckooIndex::hash(from.keys[slot]) & bit) == 0) continue;
      to.set(slot, from.keys[slot], from.rows[slot], tag);
      from.clear(slot);
      --used_[old.number];
      ++used_[fresh.number];
    }
  }
  settle(old);
  settle(fresh);
  for (size_t entry = 0; entry < directory_.size(); ++entry) {
    const bool upper = (entry >> (depth_ - depth - 1)) & 1U;
    if (directory_[entry].number == old.number && upper) directory_[entry] = fresh;
    bases_[entry] = base_of(directory_[entry].buckets);
  }
}

}  // namespace cuckooflow
