// The peers of benchmarks/store.py behind one C interface: libcuckoo and Boost's flat map as embedding
// tables, and a dense gather. A row is 32 weights and 32 Adagrad slots, kept in the map for libcuckoo and
// in an array of rows for the flat map; both allocate as they come, with their own default allocator.
#include <sys/mman.h>

#include <boost/unordered/unordered_flat_map.hpp>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <libcuckoo/cuckoohash_map.hh>
#include <vector>

namespace {

constexpr int kDim = 32;
constexpr float kLearningRate = 0.05F;
constexpr float kAccumulator = 0.1F;
constexpr int64_t kAhead = 16;  // rows the gather asks for in advance

struct Row {
  float weights[kDim];
  float slots[kDim];

  Row() : weights{} {
    for (float& slot : slots) slot = kAccumulator;
  }
  void adagrad(const float* g) {
    for (int i = 0; i < kDim; ++i) {
      slots[i] += g[i] * g[i];
      weights[i] -= kLearningRate * g[i] / std::sqrt(slots[i]);
    }
  }
};

struct Cuckoo {
  libcuckoo::cuckoohash_map<uint64_t, Row> map;

  void lookup(const uint64_t* ids, int64_t n, float* out) const {
    for (int64_t i = 0; i < n; ++i) {
      float* to = out + i * kDim;
      const bool found =
          map.find_fn(ids[i], [to](const Row& row) { std::memcpy(to, row.weights, sizeof(row.weights)); });
      if (!found) std::memset(to, 0, sizeof(float) * kDim);
    }
  }
  void push(const uint64_t* ids, const float* gradients, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      const float* g = gradients + i * kDim;
      if (map.update_fn(ids[i], [g](Row& row) { row.adagrad(g); })) continue;
      Row fresh;
      fresh.adagrad(g);
      map.insert(ids[i], fresh);
    }
  }
};

struct Flat {
  boost::unordered_flat_map<uint64_t, uint32_t> map;
  std::vector<Row> rows;

  void lookup(const uint64_t* ids, int64_t n, float* out) const {
    for (int64_t i = 0; i < n; ++i) {
      const auto found = map.find(ids[i]);
      if (found == map.end()) {
        std::memset(out + i * kDim, 0, sizeof(float) * kDim);
      } else {
        std::memcpy(out + i * kDim, rows[found->second].weights, sizeof(float) * kDim);
      }
    }
  }
  void push(const uint64_t* ids, const float* gradients, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      const auto [at, fresh] = map.try_emplace(ids[i], static_cast<uint32_t>(rows.size()));
      if (fresh) rows.emplace_back();
      rows[at->second].adagrad(gradients + i * kDim);
    }
  }
};

struct Dense {
  size_t bytes;
  float* weights;

  explicit Dense(int64_t rows) : bytes(sizeof(float) * kDim * rows) {
    weights =
        static_cast<float*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    madvise(weights, bytes, MADV_HUGEPAGE);
    for (int64_t i = 0; i < rows * kDim; ++i) weights[i] = static_cast<float>(i);
  }
  ~Dense() { munmap(weights, bytes); }

  void gather(const uint32_t* rows, int64_t n, float* out) const {
    for (int64_t i = 0; i < n; ++i) {
      if (i + kAhead < n) {
        const float* next = weights + size_t{rows[i + kAhead]} * kDim;
        __builtin_prefetch(next);
        __builtin_prefetch(next + 16);
      }
      std::memcpy(out + i * kDim, weights + size_t{rows[i]} * kDim, sizeof(float) * kDim);
    }
  }
};

}  // namespace

extern "C" {

void* cuckoo_new() { return new Cuckoo; }
void cuckoo_free(void* t) { delete static_cast<Cuckoo*>(t); }
void cuckoo_lookup(void* t, const uint64_t* ids, int64_t n, float* out) {
  static_cast<Cuckoo*>(t)->lookup(ids, n, out);
}
void cuckoo_push(void* t, const uint64_t* ids, const float* gradients, int64_t n) {
  static_cast<Cuckoo*>(t)->push(ids, gradients, n);
}

void* flat_new() { return new Flat; }
void flat_free(void* t) { delete static_cast<Flat*>(t); }
void flat_lookup(void* t, const uint64_t* ids, int64_t n, float* out) {
  static_cast<Flat*>(t)->lookup(ids, n, out);
}
void flat_push(void* t, const uint64_t* ids, const float* gradients, int64_t n) {
  static_cast<Flat*>(t)->push(ids, gradients, n);
}

void* dense_new(int64_t rows) { return new Dense(rows); }
void dense_free(void* t) { delete static_cast<Dense*>(t); }
void dense_gather(void* t, const uint32_t* rows, int64_t n, float* out) {
  static_cast<Dense*>(t)->gather(rows, n, out);
}

}  // extern "C"
