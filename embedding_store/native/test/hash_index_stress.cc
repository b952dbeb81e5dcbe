// The index of hashes against a plain multimap, with keys that collide and keys at the ends of their range.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "../hash_index.h"

namespace cuckooflow {

void stress_hash_index(uint64_t seed) {
  std::mt19937_64 random(seed);
  for (int round = 0; round < 20; ++round) {
    const uint64_t distinct = 1 + random() % 5'000;
    auto key = [&] {
      const uint64_t number = random() % distinct;
      return number % 2 == 0 ? number : ~number;
    };
    HashIndex index;
    std::multimap<uint64_t, int64_t> plain;
    for (int step = 0; step < 30; ++step) {
      std::vector<uint64_t> keys(random() % 700);
      std::vector<int64_t> values(keys.size());
      std::generate(keys.begin(), keys.end(), key);
      for (size_t i = 0; i < keys.size(); ++i) {
        values[i] = static_cast<int64_t>(random() >> 1);
        plain.emplace(keys[i], values[i]);
      }
      index.add(keys.data(), values.data(), static_cast<int64_t>(keys.size()));
      std::vector<uint64_t> queries(100);
      std::generate(queries.begin(), queries.end(), key);
      std::vector<int64_t> which;
      std::vector<int64_t> found;
      index.lookup(queries.data(), static_cast<int64_t>(queries.size()), &which, &found);
      std::vector<std::pair<int64_t, int64_t>> answers;
      std::vector<std::pair<int64_t, int64_t>> expected;
      for (size_t i = 0; i < which.size(); ++i) answers.emplace_back(which[i], found[i]);
      for (size_t i = 0; i < queries.size(); ++i) {
        const auto range = plain.equal_range(queries[i]);
        for (auto at = range.first; at != range.second; ++at) expected.emplace_back(i, at->second);
      }
      std::sort(answers.begin(), answers.end());
      std::sort(expected.begin(), expected.end());
      if (answers != expected || index.size() != static_cast<int64_t>(plain.size())) {
        std::fprintf(stderr, "stress: expected the index to answer as a multimap does\n");
        std::abort();
      }
    }
  }
}

}  // namespace cuckooflow
