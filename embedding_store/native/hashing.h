// Stable 64-bit hashes of byte strings and integers: the same on every machine and in every version,
// because shards, feature ids and logical buckets are made of them.
#pragma once

#include <cstdint>
#include <cstring>

namespace cuckooflow {

// Finalizer of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
inline uint64_t mix64(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9ULL;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebULL;
  x ^= x >> 31;
  return x;
}

inline uint64_t read_tail(const uint8_t* p, int64_t n) {
  uint64_t word = 0;
  std::memcpy(&word, p, static_cast<size_t>(n));  // little-endian, as Arrow is
  return word;
}

// Eight bytes a step; the length is part of the start value, so "a" and "a\0" differ.
inline uint64_t hash_bytes(const uint8_t* p, int64_t n, uint64_t seed) {
  uint64_t h = mix64(seed + 0x9e3779b97f4a7c15ULL * (static_cast<uint64_t>(n) + 1));
  while (n >= 8) {
    h = mix64(h ^ read_tail(p, 8)) + 0x9e3779b97f4a7c15ULL;
    p += 8;
    n -= 8;
  }
  if (n > 0) h = mix64(h ^ read_tail(p, n)) + 0x9e3779b97f4a7c15ULL;
  return mix64(h);
}

}  // namespace cuckooflow
