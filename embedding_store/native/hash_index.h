// A multimap of 64-bit keys to 64-bit values in one flat array: batched inserts and lookups, for joins in
// memory. Linear probing over a range reduced by multiplication (Lemire, "Fast Random Integer Generation in
// an Interval", 2019), so that any size will do and growth is by half. Entries are never taken out one by
// one: their owner makes a new index of those that stay. Not thread-safe.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "hashing.h"

namespace cuckooflow {

class HashIndex {
 public:
  // No value may be this one: it marks a free place.
  static constexpr int64_t kFree = std::numeric_limits<int64_t>::min();

  int64_t size() const { return size_; }
  int64_t bytes() const { return static_cast<int64_t>(places_.capacity() * sizeof(Entry)); }

  void add(const uint64_t* keys, const int64_t* values, int64_t n) {
    reserve(size_ + n);
    for (int64_t i = 0; i < n; ++i) {
      if (i + kAhead < n) __builtin_prefetch(&places_[home(keys[i + kAhead])], 1);
      place(keys[i], values[i]);
    }
    size_ += n;
  }

  // Appends (number of the query, value) for every entry whose key is asked for, by query.
  void lookup(const uint64_t* queries, int64_t n, std::vector<int64_t>* which,
              std::vector<int64_t>* values) const {
    if (size_ == 0) return;
    for (int64_t i = 0; i < n; ++i) {
      if (i + kAhead < n) __builtin_prefetch(&places_[home(queries[i + kAhead])]);
      for (uint64_t at = home(queries[i]); places_[at].value != kFree; at = next(at)) {
        if (places_[at].key != queries[i]) continue;
        which->push_back(i);
        values->push_back(places_[at].value);
      }
    }
  }

  // All entries, in no order that means anything; room for size() of them.
  void entries(uint64_t* keys, int64_t* values) const {
    for (const Entry& entry : places_) {
      if (entry.value == kFree) continue;
      *keys++ = entry.key;
      *values++ = entry.value;
    }
  }

 private:
  struct Entry {
    uint64_t key = 0;
    int64_t value = kFree;
  };
  static constexpr int64_t kAhead = 16;
  static constexpr int64_t kLeast = 64;

  uint64_t home(uint64_t key) const {
    return static_cast<uint64_t>((static_cast<unsigned __int128>(mix64(key)) * places_.size()) >> 64);
  }
  uint64_t next(uint64_t at) const { return at + 1 == places_.size() ? 0 : at + 1; }

  void place(uint64_t key, int64_t value) {
    uint64_t at = home(key);
    while (places_[at].value != kFree) at = next(at);
    places_[at] = {key, value};
  }

  // At most three quarters full: then a miss looks at nine places or so, most of them on one cache line.
  void reserve(int64_t n) {
    const auto places = static_cast<int64_t>(places_.size());
    if (n * 4 <= places * 3) return;
    std::vector<Entry> old(std::max({kLeast, places + places / 2, n * 4 / 3 + 1}));
    old.swap(places_);
    for (const Entry& entry : old)
      if (entry.value != kFree) place(entry.key, entry.value);
  }

  std::vector<Entry> places_;
  int64_t size_ = 0;
};

}  // namespace cuckooflow
