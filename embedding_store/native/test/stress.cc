// Stress of the core, for the sanitizers (make native-sanitize). First random operations against plain
// maps, then threads that push, look up, take deltas and take cuts at the same time. Everything is exact:
// gradients are small integers, so sums do not depend on their order.
//
// stress [seed] - exits 0, or aborts where something differs or a sanitizer objects.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <thread>
#include <unordered_map>
#include <vector>

#include "../core.h"

namespace cuckooflow {

void stress_hash_index(uint64_t seed);     // hash_index_stress.cc
void stress_distinct_rows(uint64_t seed);  // distinct_rows_stress.cc

namespace {

constexpr uint32_t kBuckets = 16;
constexpr uint64_t kExtremes[] = {0, 1, uint64_t{1} << 63, ~uint64_t{0}};

using Random = std::mt19937_64;

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "stress: expected %s\n", what);
  std::abort();
}

uint64_t below(Random& random, uint64_t n) { return random() % n; }

TableOptions options(OptimizerKind kind, int64_t dim) {
  TableOptions o;
  o.columns = o.dim = dim;
  o.optimizer.kind = kind;
  o.optimizer.learning_rate = kind == OptimizerKind::kSgd ? 1.0F : 0.05F;
  o.admission = {1};
  o.buckets = kBuckets;
  return o;
}

TableOptions admitting(AdmissionMode mode, uint8_t needed, uint64_t filter_bytes) {
  TableOptions o = options(OptimizerKind::kSgd, 1);
  o.admission = {needed};
  o.admission_mode = mode;
  o.filter_bytes = filter_bytes;
  return o;
}

// Ids and one gradient for each, the same in all columns.
struct Entries {
  std::vector<uint64_t> ids;
  std::vector<float> values;

  std::vector<float> gradients(int64_t dim) const {
    std::vector<float> all;
    for (const float value : values) all.insert(all.end(), dim, value);
    return all;
  }
};

void push(Core* core, const Entries& entries, const std::vector<uint8_t>& mask, int64_t event_time_us = 0) {
  Push push;
  std::vector<std::vector<float>> gradients;
  for (int i = 0; i < core->table_count(); ++i) {
    const int64_t dim = core->table(i).dim();
    gradients.push_back(entries.gradients(dim));
    const auto n = static_cast<int64_t>(entries.ids.size());
    push.tables.push_back({i, {entries.ids.data(), gradients.back().data(), nullptr, n, dim}});
  }
  core->push(push, mask.data(), event_time_us);
}

std::vector<float> lookup(Core* core, int table, const std::vector<uint64_t>& ids) {
  std::vector<float> out(ids.size() * core->table(table).dim());
  core->lookup({{table, ids.data(), static_cast<int64_t>(ids.size()), out.data()}}, {});
  return out;
}

// The rows of a checkpoint's images.
struct Image {
  RowHeader header;
  std::vector<float> floats;  // weights, then slots
};

std::vector<Image> images(const Table& table, int64_t slots, const std::vector<uint8_t>& bytes) {
  std::vector<Image> out(bytes.size() / table.row_bytes());
  for (size_t i = 0; i < out.size(); ++i) {
    const uint8_t* at = bytes.data() + i * table.row_bytes();
    std::memcpy(&out[i].header, at, sizeof(RowHeader));
    out[i].floats.resize(table.dim() + slots);
    std::memcpy(out[i].floats.data(), at + sizeof(RowHeader), out[i].floats.size() * sizeof(float));
  }
  return out;
}

bool all_equal(const float* values, int64_t n) {
  return std::all_of(values, values + n, [values](float v) { return v == values[0]; });
}

// One table of each kind against maps: sums, rows admitted exactly, deltas, cuts.
class Differential {
 public:
  explicit Differential(uint64_t seed) : random_(seed), core_(kBuckets) {
    core_.add_table(options(OptimizerKind::kSgd, kDim));
    core_.add_table(admitting(AdmissionMode::kExact, kNeeded, 4 << 20));
    base_ = core_.collect(0, true).version;
  }

  void run(int steps) {
    for (int step = 0; step < steps; ++step) {
      space_ = std::min<uint64_t>(space_ + space_ / 8, 60'000);
      push_some();
      look_up_some();
      if (below(random_, 4) == 0) take_delta();
      if (below(random_, 8) == 0) take_cut();
    }
    check(core_.table(0).rows() == rows_.size(), "as many rows as ids pushed");
    check(core_.table(1).rows() == admitted_.size(), "as many rows as ids that occurred often enough");
    check(core_.table(0).index().segments() > 1, "an index that grew");
    check(core_.table(1).filter().forgotten() == 0, "a filter with room");
  }

 private:
  static constexpr int64_t kDim = 3;
  static constexpr uint32_t kNeeded = 3;
  using Rows = std::unordered_map<uint64_t, float>;

  std::vector<uint64_t> some_ids(size_t n) {
    std::vector<uint64_t> ids(std::begin(kExtremes), std::end(kExtremes));
    while (ids.size() < n) ids.push_back(below(random_, space_) << (below(random_, 2) * 40));
    std::shuffle(ids.begin(), ids.end(), random_);
    return ids;
  }

  void push_some() {
    Entries entries;
    entries.ids = some_ids(4 + below(random_, 2'000));
    for (size_t i = 0; i < entries.ids.size(); ++i) {
      entries.values.push_back(static_cast<float>(below(random_, 7)) - 3.0F);
    }
    std::vector<uint8_t> mask(kBuckets, 1);
    if (below(random_, 2) == 0) {
      for (uint8_t& bit : mask) bit = static_cast<uint8_t>(below(random_, 2));
    }
    std::unordered_map<uint64_t, std::pair<float, uint32_t>> sums;
    for (size_t i = 0; i < entries.ids.size(); ++i) {
      if (mask[bucket_of(entries.ids[i], kBuckets)] == 0) continue;
      sums[entries.ids[i]].first += entries.values[i];
      ++sums[entries.ids[i]].second;
    }
    for (const auto& [id, sum] : sums) {
      rows_[id] -= sum.first;
      touched_[id] = core_.epoch();
      if ((occurred_[id] += sum.second) >= kNeeded) admitted_[id] -= sum.first;
    }
    push(&core_, entries, mask);
  }

  void look_up_some() {
    const std::vector<uint64_t> ids = some_ids(500);
    const std::vector<float> found = lookup(&core_, 0, ids);
    const std::vector<float> rare = lookup(&core_, 1, ids);
    for (size_t i = 0; i < ids.size(); ++i) {
      const auto row = rows_.find(ids[i]);
      const auto admitted = admitted_.find(ids[i]);
      check(all_equal(&found[i * kDim], kDim), "equal columns");
      check(found[i * kDim] == (row == rows_.end() ? 0.0F : row->second), "the sum of an id's gradients");
      check(rare[i] == (admitted == admitted_.end() ? 0.0F : admitted->second), "the sum from admission on");
    }
  }

  void take_delta() {
    const Core::Collected delta = core_.collect(base_, false);
    const size_t expected = std::count_if(touched_.begin(), touched_.end(),
                                          [this](const auto& entry) { return entry.second > base_; });
    check(delta.ids[0].size() == expected, "each touched row once");
    for (size_t i = 0; i < delta.ids[0].size(); ++i) {
      check(touched_.at(delta.ids[0][i]) > base_, "rows touched since the base");
      check(delta.weights[0][i * kDim] == rows_.at(delta.ids[0][i]), "a delta's weights");
    }
    if (below(random_, 2) == 0) return;  // not acknowledged: all of it comes again
    base_ = delta.version;
    core_.forget_touched(base_);
  }

  // Reads a cut in pieces while pushes go on, and restores it; or gives it up half-way.
  void take_cut() {
    core_.begin_cut();
    const Rows then[] = {rows_, admitted_};
    const bool whole = below(random_, 4) != 0;
    std::vector<uint8_t> bytes[2];
    for (int t = 0; t < 2; ++t) {
      for (uint32_t left = core_.cut_rows(t); left > 0;) {
        const auto n = static_cast<uint32_t>(1 + below(random_, std::min<uint64_t>(left, 5'000)));
        std::vector<uint8_t> piece(n * core_.table(t).row_bytes());
        const uint32_t read = core_.read_cut(t, n, piece.data());
        bytes[t].insert(bytes[t].end(), piece.begin(), piece.begin() + read * core_.table(t).row_bytes());
        left -= n;
        if (!whole && below(random_, 4) == 0) break;
        push_some();
      }
    }
    const std::vector<uint8_t> filter = core_.cut_filter(1);
    core_.end_cut();
    if (!whole) return;
    Core restored(kBuckets);
    restored.add_table(options(OptimizerKind::kSgd, kDim));
    restored.add_table(admitting(AdmissionMode::kExact, kNeeded, 4 << 20));
    for (int t = 0; t < 2; ++t) {
      const auto n = static_cast<uint32_t>(bytes[t].size() / core_.table(t).row_bytes());
      check(n == then[t].size(), "every row in the cut");
      check(restored.load_rows(t, bytes[t].data(), n), "each id once in the cut");
      std::vector<uint64_t> ids;
      for (const auto& [id, weight] : then[t]) ids.push_back(id);
      const std::vector<float> found = lookup(&restored, t, ids);
      for (size_t i = 0; i < ids.size(); ++i) {
        check(found[i * core_.table(t).dim()] == then[t].at(ids[i]), "a row as it was at the cut");
      }
    }
    check(restored.load_filter(1, filter.data(), filter.size()), "a filter that loads");
  }

  Random random_;
  Core core_;
  uint64_t space_ = 1'000;
  uint32_t base_ = 0;
  Rows rows_, admitted_;
  std::unordered_map<uint64_t, uint32_t> touched_, occurred_;
};

// Writers keep all weights and slots of a row equal; whoever reads a row sees it so.
class Concurrent {
 public:
  explicit Concurrent(uint64_t seed) : seed_(seed), core_(kBuckets) {
    core_.add_table(options(OptimizerKind::kSgd, kDim));
    core_.add_table(options(OptimizerKind::kAdagrad, kDim));
    core_.add_table(options(OptimizerKind::kAdam, kDim));
    core_.add_table(admitting(AdmissionMode::kExact, 2, 1 << 10));
    core_.add_table(admitting(AdmissionMode::kProbabilistic, 3, 1 << 10));
    TableOptions expiring = options(OptimizerKind::kAdagrad, kDim);
    expiring.ttl_us = {100};
    core_.add_table(expiring);
    TableOptions bounded = options(OptimizerKind::kAdagrad, kDim);
    bounded.memory_limit_bytes = kLimitBytes;
    bounded.evict_least_recent = true;
    core_.add_table(bounded);
    base_ = core_.collect(0, true).version;
    core_.bound_cut(uint64_t{64} << 10, std::chrono::milliseconds(1));
    core_.set_helpers(2);
    for (const RowKind kind : {RowKind::kFloat32, RowKind::kFloat16, RowKind::kInt8}) {
      TableOptions read = options(OptimizerKind::kSgd, kDim);
      read.kind = kind;
      read.dim = row_floats(kind, kDim);
      replica_core_.add_table(read);
    }
    replica_core_.set_helpers(1);
  }

  void run() {
    std::atomic<int> writing{kWriters};
    std::vector<std::thread> threads;
    for (int w = 0; w < kWriters; ++w) {
      threads.emplace_back([this, w, &writing] {
        write(w);
        --writing;
      });
    }
    const auto meanwhile = [&threads, &writing](std::function<void()> once) {
      threads.emplace_back([&writing, once = std::move(once)] {
        do once();
        while (writing > 0);
      });
    };
    for (int r = 0; r < kReaders; ++r) {
      Random random(seed_ + 100 + r);
      std::unordered_map<uint64_t, float> before;
      meanwhile([this, random, before]() mutable { read(&random, &before); });
    }
    meanwhile([this] { take_cut(); });
    meanwhile([this] { take_delta(); });
    meanwhile([this] { evict(); });
    for (int r = 0; r < kReaders; ++r) {
      Random random(seed_ + 200 + r);
      meanwhile([this, random]() mutable { read_replica(&random); });
    }
    meanwhile([this] {
      for (int t = 0; t < core_.table_count(); ++t) check(core_.table_stats(t).bytes > 0, "statistics");
    });
    for (std::thread& thread : threads) thread.join();
    finish();
  }

 private:
  static constexpr int64_t kDim = 9;
  static constexpr int kWriters = 3;
  static constexpr int kReaders = 2;
  static constexpr int kPushes = 250;
  static constexpr int kEntries = 400;
  static constexpr uint64_t kSpace = 40'000;
  static constexpr int64_t kSlots[] = {0, kDim, 2 * kDim};

  void write(int writer) {
    Random random(seed_ + writer);
    const std::vector<uint8_t> mask(kBuckets, 1);
    for (int n = 0; n < kPushes; ++n) {
      Entries entries;
      for (int i = 0; i < kEntries; ++i) entries.ids.push_back(below(random, 1 + below(random, kSpace)));
      entries.values.assign(kEntries, -1.0F);
      core_.await_cut_room();
      push(&core_, entries, mask, ++now_us_);
    }
  }

  void check_rows(int table, const float* weights, size_t n) const {
    const int64_t dim = core_.table(table).dim();
    for (size_t i = 0; i < n; ++i) check(all_equal(weights + i * dim, dim), "a row of one version");
  }

  // A lookup that is large enough to be shared with helpers.
  static std::vector<uint64_t> many_ids(Random* random) {
    std::vector<uint64_t> ids;
    for (int i = 0; i < 3'000; ++i) ids.push_back(below(*random, 1 + below(*random, kSpace)));
    return ids;
  }

  void evict() {
    const uint32_t rows = core_.row_numbers(kExpiring);
    for (uint32_t first = 0; first < rows; first += 512) core_.evict_expired(kExpiring, first, 512);
  }

  // Its versions are counts, which all formats of rows hold exactly where a row's weights are equal.
  void read_replica(Random* random) {
    const std::vector<uint64_t> ids = many_ids(random);
    std::vector<float> out[3];
    std::vector<LookupRequest> requests;
    for (int t = 0; t < 3; ++t) {
      out[t].resize(ids.size() * kDim);
      requests.push_back({t, ids.data(), static_cast<int64_t>(ids.size()), out[t].data()});
    }
    replica_core_.lookup(requests, {});
    for (int t = 0; t < 3; ++t) {
      for (size_t i = 0; i < ids.size(); ++i) {
        check(all_equal(&out[t][i * kDim], kDim), "a row of one version in a replica");
        check(std::fabs(out[t][i * kDim] - out[0][i * kDim]) <= 1e-3F * out[0][i * kDim],
              "a replica's tables of one moment");
      }
    }
  }

  void read(Random* random, std::unordered_map<uint64_t, float>* before) {
    const std::vector<uint64_t> ids = many_ids(random);
    std::vector<float> out[5];
    std::vector<LookupRequest> requests;
    const int tables[] = {0, 1, 2, kExpiring, kBounded};
    for (int t = 0; t < 5; ++t) {
      out[t].resize(ids.size() * kDim);
      requests.push_back({tables[t], ids.data(), static_cast<int64_t>(ids.size()), out[t].data()});
    }
    core_.lookup(requests, {});
    for (int t = 0; t < 5; ++t) check_rows(tables[t], out[t].data(), ids.size());
    for (size_t i = 0; i < ids.size(); ++i) {
      const float count = out[0][i * kDim];
      check((count > 0.0F) == (out[1][i * kDim] > 0.0F), "tables of one moment");
      float& seen = (*before)[ids[i]];
      check(count >= seen, "counts that never fall");
      seen = count;
    }
  }

  void take_cut() {
    const bool all = ++cuts_ % 2 == 0;
    const Core::Cut cut = core_.begin_cut(all ? -1 : saved_, true);
    double counts = 0.0;
    for (int t = 0; t < core_.table_count(); ++t) {
      for (uint32_t left = core_.cut_rows(t); left > 0;) {
        const uint32_t n = std::min<uint32_t>(left, 2'000);
        std::vector<uint8_t> bytes(n * core_.table(t).row_bytes());
        const int64_t read = core_.read_cut(t, n, bytes.data());
        if (read < 0) {
          core_.end_cut();
          return;
        }
        bytes.resize(read * core_.table(t).row_bytes());
        left -= n;
        if (t >= 3 && t < kExpiring) continue;
        for (const Image& image : images(core_.table(t), t < 3 ? kSlots[t] : kDim, bytes)) {
          for (int64_t at = 0; at < static_cast<int64_t>(image.floats.size()); at += kDim) {
            check(all_equal(&image.floats[at], kDim), "weights and slots of one version in a cut");
          }
          if (t == 0) counts += image.floats[0];
        }
      }
    }
    core_.end_cut();
    check(cut.since >= 0 || static_cast<int64_t>(counts) % kEntries == 0, "whole pushes in a cut");
    core_.saved(cut.epoch);
    saved_ = cut.epoch;
  }

  void take_delta() {
    const Core::Collected delta = core_.collect(base_, false);
    for (const int t : {0, 1, 2, kExpiring, kBounded})
      check_rows(t, delta.weights[t].data(), delta.ids[t].size());
    for (size_t i = 0; i < delta.ids[0].size(); ++i) replica_[delta.ids[0][i]] = delta.weights[0][i * kDim];
    base_ = delta.version;
    core_.forget_touched(base_);
    // To a replica, which loses every tenth row again.
    std::vector<uint64_t> gone;
    for (size_t i = 0; i < delta.ids[0].size(); i += 10) gone.push_back(delta.ids[0][i]);
    std::vector<AssignRequest> rows;
    std::vector<EraseRequest> erased;
    for (int t = 0; t < 3; ++t) {
      erased.push_back({t, gone.data(), static_cast<int64_t>(gone.size())});
      rows.push_back(
          {t, delta.ids[0].data(), delta.weights[0].data(), static_cast<int64_t>(delta.ids[0].size())});
    }
    replica_core_.assign(rows, erased, delta.version);
  }

  void finish() {
    take_delta();
    std::vector<uint64_t> ids(kSpace);
    for (uint64_t i = 0; i < kSpace; ++i) ids[i] = i;
    const std::vector<float> found = lookup(&core_, 0, ids);
    double total = 0.0;
    for (uint64_t i = 0; i < kSpace; ++i) {
      const float count = found[i * kDim];
      const auto given = replica_.find(i);
      check(count == (given == replica_.end() ? 0.0F : given->second), "no key lost by the deltas");
      total += count;
    }
    check(total == double{kWriters} * kPushes * kEntries, "every gradient applied once");
    check(core_.table(kExpiring).evicted_expired() > 0, "rows that expired meanwhile");
    check(core_.table(kBounded).evicted_memory() > 0, "rows that made room meanwhile");
    check(core_.table(kBounded).bytes() <= kLimitBytes, "a table within its memory limit");
  }

  static constexpr int kExpiring = 5;
  static constexpr int kBounded = 6;
  static constexpr uint64_t kLimitBytes = 1 << 20;

  uint64_t seed_;
  Core core_;
  Core replica_core_{1};
  std::atomic<int64_t> now_us_{0};
  uint32_t base_ = 0;
  int64_t saved_ = -1;
  int cuts_ = 0;
  std::unordered_map<uint64_t, float> replica_;
};

}  // namespace
}  // namespace cuckooflow

int main(int argc, char** argv) {
  const uint64_t seed = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  std::printf("stress: seed %llu\n", static_cast<unsigned long long>(seed));
  cuckooflow::stress_hash_index(seed);
  std::puts("stress: the index of hashes equals a multimap");
  cuckooflow::stress_distinct_rows(seed);
  std::puts("stress: distinct ids, their rows and sums are those of plain loops");
  cuckooflow::Differential(seed).run(150);
  std::puts("stress: operations equal those on maps");
  cuckooflow::Concurrent(seed).run();
  std::puts("stress: threads saw whole rows only");
  return 0;
}
