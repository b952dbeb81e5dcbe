// Python's view of the core. Arrays are checked (dtype, shape, contiguity) on the Python side; the GIL is
// released around batch work and never taken while the core's lock is held.
#include "core_binding.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core.h"
#include "crc32c.h"

namespace py = pybind11;

namespace cuckooflow {

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;
using Floats = Array<float>;
using Ids = Array<uint64_t>;
using Bytes = Array<uint8_t>;
using Times = Array<int64_t>;

Optimizer make_optimizer(const std::string& kind, float learning_rate, float initial_accumulator, float beta1,
                         float beta2, float epsilon, float beta, float l1, float l2) {
  const OptimizerKind which = kind == "sgd"       ? OptimizerKind::kSgd
                              : kind == "adagrad" ? OptimizerKind::kAdagrad
                              : kind == "adam"    ? OptimizerKind::kAdam
                              : kind == "ftrl"    ? OptimizerKind::kFtrl
                                                  : OptimizerKind::kRowwiseAdagrad;
  return {which, learning_rate, initial_accumulator, beta1, beta2, epsilon, beta, l1, l2};
}

RowKind kind_of(const std::string& name) {
  return name == "float16"   ? RowKind::kFloat16
         : name == "int8"    ? RowKind::kInt8
         : name == "counter" ? RowKind::kCounter
         : name == "recent"  ? RowKind::kRecent
                             : RowKind::kFloat32;
}

void add_table(Core& core, int64_t dim, const Optimizer& optimizer, float clip_norm, float l2, float stddev,
               uint64_t seed, const Bytes& admission, const std::string& admission_mode,
               uint64_t filter_bytes, const Array<int64_t>& ttl_us, uint64_t memory_limit_bytes,
               bool evict_least_recent, const std::string& rows, const std::vector<int64_t>& half_lives_us) {
  TableOptions options;
  options.kind = kind_of(rows);
  options.columns = dim;
  options.dim = row_floats(options.kind, dim);
  options.half_lives_us = half_lives_us;
  options.optimizer = optimizer;
  options.gradient = {clip_norm, l2};
  options.init_stddev = stddev;
  options.seed = seed;
  options.admission.assign(admission.data(), admission.data() + admission.size());
  options.admission_mode = admission_mode == "exact" ? AdmissionMode::kExact : AdmissionMode::kProbabilistic;
  options.filter_bytes = filter_bytes;
  options.buckets = core.buckets();
  options.ttl_us.assign(ttl_us.data(), ttl_us.data() + ttl_us.size());
  options.memory_limit_bytes = memory_limit_bytes;
  options.evict_least_recent = evict_least_recent;
  options.backlog_max = core.backlog_max();
  core.add_table(options);
}

void add_dense(Core& core, const Optimizer& optimizer, const Floats& value, uint32_t bucket) {
  core.add_dense(optimizer, {value.data(), value.data() + value.size()}, bucket);
}

// A vector's memory as a numpy array, without a copy.
template <typename T>
py::array_t<T> as_array(std::vector<T>&& values, std::vector<py::ssize_t> shape) {
  auto* held = new std::vector<T>(std::move(values));
  const py::capsule owner(held, [](void* p) { delete static_cast<std::vector<T>*>(p); });
  return py::array_t<T>(std::move(shape), held->data(), owner);
}

// Answers of counter and recent tables: [(sums or values, times)].
using StreamAsked = std::vector<std::tuple<int, Ids, std::optional<Times>>>;
std::pair<std::vector<StreamRequest>, py::list> stream_requests(Core& core, const StreamAsked& asked) {
  std::vector<StreamRequest> requests;
  py::list answers;
  for (const auto& [table, ids, as_of] : asked) {
    const auto n = static_cast<py::ssize_t>(ids.size());
    const auto columns = static_cast<py::ssize_t>(core.table(table).columns());
    const bool counter = core.table(table).kind() == RowKind::kCounter;
    py::array_t<int64_t> times({n, counter ? 2 : columns});
    StreamRequest request{table, ids.data(), n, as_of ? as_of->data() : nullptr, {}};
    request.out.times_us = times.mutable_data();
    if (counter) {
      py::array_t<float> sums({n, columns});
      request.out.sums = sums.mutable_data();
      answers.append(py::make_tuple(sums, times));
    } else {
      py::array_t<uint64_t> values({n, columns});
      request.out.values = values.mutable_data();
      answers.append(py::make_tuple(values, times));
    }
    requests.push_back(request);
  }
  return {std::move(requests), answers};
}

// [(table, ids)], [(counter or recent table, ids, as_of)] -> ([(n, dim) weights], [dense values, flat],
// epoch,
// [(n, columns) sums or values, their times]), all of one moment.
py::tuple lookup(Core& core, const std::vector<std::pair<int, Ids>>& asked, bool with_dense,
                 const StreamAsked& streams) {
  std::vector<LookupRequest> requests;
  py::list rows;
  for (const auto& [table, ids] : asked) {
    py::array_t<float> out(
        {static_cast<py::ssize_t>(ids.size()), static_cast<py::ssize_t>(core.table(table).columns())});
    requests.push_back({table, ids.data(), ids.size(), out.mutable_data()});
    rows.append(out);
  }
  std::vector<float*> dense_out;
  py::list dense;
  for (int i = 0; with_dense && i < core.dense_count(); ++i) {
    py::array_t<float> out(static_cast<py::ssize_t>(core.dense(i).value().size()));
    dense_out.push_back(out.mutable_data());
    dense.append(out);
  }
  const auto stream = stream_requests(core, streams);
  uint32_t epoch = 0;
  {
    const py::gil_scoped_release release;
    epoch = core.lookup(requests, dense_out, stream.first);
  }
  return py::make_tuple(rows, dense, epoch, stream.second);
}

// The gradients of one push. `add_*` answer false if a value, or a sum of duplicates, is not finite.
class PushBuilder {
 public:
  bool add_table(Core& core, int table, const Ids& ids, const Floats& gradients,
                 const std::optional<Array<uint32_t>>& counts) {
    const int64_t dim = core.table(table).dim();
    const uint64_t* id = ids.data();
    const float* g = gradients.data();
    const uint32_t* count = counts ? counts->data() : nullptr;
    const int64_t n = ids.size();
    held_.push_back(gradients);
    const py::gil_scoped_release release;
    push_.tables.push_back({table, GradientBatch(id, g, count, n, dim)});
    return push_.tables.back().batch.finite();
  }

  bool add_counters(int table, const Ids& ids, const Floats& amounts, const Times& times) {
    held_.insert(held_.end(), {ids, amounts, times});
    push_.streams.push_back({table, {ids.data(), times.data(), amounts.data(), nullptr, ids.size()}});
    return all_finite(amounts.data(), amounts.size());
  }

  void add_recents(int table, const Ids& ids, const Ids& values, const Times& times) {
    held_.insert(held_.end(), {ids, values, times});
    push_.streams.push_back({table, {ids.data(), times.data(), nullptr, values.data(), ids.size()}});
  }

  bool add_dense(int dense, const Floats& gradient) {
    held_.push_back(gradient);
    push_.dense.push_back({dense, gradient.data()});
    return all_finite(gradient.data(), gradient.size());
  }

  void apply(Core& core, const Bytes& bucket_mask, int64_t event_time_us) const {
    const uint8_t* mask = bucket_mask.data();
    const py::gil_scoped_release release;
    core.push(push_, mask, event_time_us);
  }

 private:
  Push push_;
  std::vector<py::array> held_;
};

void assign(Core& core, const std::vector<std::tuple<int, Ids, Floats>>& given, uint32_t epoch,
            const std::vector<std::pair<int, Ids>>& gone) {
  std::vector<AssignRequest> requests;
  for (const auto& [table, ids, weights] : given) {
    requests.push_back({table, ids.data(), weights.data(), ids.size()});
  }
  std::vector<EraseRequest> erased;
  for (const auto& [table, ids] : gone) erased.push_back({table, ids.data(), ids.size()});
  const py::gil_scoped_release release;
  core.assign(requests, erased, epoch);
}

// ([(ids, weights, tombstones)], [dense values, flat], version)
py::tuple collect(Core& core, uint32_t base, bool all) {
  Core::Collected out;
  {
    const py::gil_scoped_release release;
    out = core.collect(base, all);
  }
  py::list tables;
  for (size_t i = 0; i < out.ids.size(); ++i) {
    const auto n = static_cast<py::ssize_t>(out.ids[i].size());
    const auto dim = static_cast<py::ssize_t>(core.table(static_cast<int>(i)).dim());
    const auto gone = static_cast<py::ssize_t>(out.tombstones[i].size());
    tables.append(py::make_tuple(as_array(std::move(out.ids[i]), {n}),
                                 as_array(std::move(out.weights[i]), {n, dim}),
                                 as_array(std::move(out.tombstones[i]), {gone})));
  }
  py::list dense;
  for (auto& value : out.dense) {
    const auto n = static_cast<py::ssize_t>(value.size());
    dense.append(as_array(std::move(value), {n}));
  }
  return py::make_tuple(tables, dense, out.version);
}

// None where the cut was given up.
std::optional<Bytes> read_cut(Core& core, int table, uint32_t rows, std::optional<Bytes> into) {
  const size_t row_bytes = core.table(table).row_bytes();
  const auto size = static_cast<py::ssize_t>(rows * row_bytes);
  if (into && into->size() < size) throw py::value_error("read_cut: the memory is too small for the rows");
  Bytes out = into ? *into : Bytes(size);
  uint8_t* to = out.mutable_data();
  int64_t copied = 0;
  {
    const py::gil_scoped_release release;
    copied = core.read_cut(table, rows, to);
  }
  if (copied < 0) return std::nullopt;
  const auto end = static_cast<py::ssize_t>(copied * row_bytes);
  return end == out.size() ? out : Bytes(out[py::slice(0, end, 1)]);
}

// (epoch, since)
std::pair<uint32_t, int64_t> begin_cut(Core& core, int64_t since, bool saving) {
  const py::gil_scoped_release release;
  const Core::Cut cut = core.begin_cut(since, saving);
  return {cut.epoch, cut.since};
}

Bytes copy_bytes(const std::vector<uint8_t>& bytes) {
  return Bytes(static_cast<py::ssize_t>(bytes.size()), bytes.data());
}

bool load_rows(Core& core, int table, const Bytes& images, bool older, std::optional<int64_t> clock) {
  const auto n = static_cast<uint32_t>(images.size() / core.table(table).row_bytes());
  const uint8_t* from = images.data();
  const py::gil_scoped_release release;
  return core.load_rows(table, from, n, older, clock ? &*clock : nullptr);
}

py::dict table_stats(Core& core, int table) {
  const Core::TableStats s = core.table_stats(table);
  py::dict out;
  out["rows"] = s.rows;
  out["bytes"] = s.bytes;
  out["load_factor"] = static_cast<double>(s.rows) / static_cast<double>(s.index_capacity);
  out["index_segments"] = s.index_segments;
  out["not_admitted"] = s.not_admitted;
  out["filter_entries"] = s.filter_entries;
  out["filter_forgotten"] = s.filter_forgotten;
  out["journal_entries"] = s.journal;
  out["free_rows"] = s.free_rows;
  out["evicted_expired"] = s.evicted_expired;
  out["evicted_memory"] = s.evicted_memory;
  out["refused_new_ids"] = s.refused_new_ids;
  out["tombstones"] = s.tombstones;
  out["cut_bytes"] = s.cut_bytes;
  // JSON, as which this travels, has strings for keys.
  py::dict slots;
  for (size_t slot = 0; slot < s.slot_rows.size(); ++slot) {
    if (s.slot_rows[slot] > 0) slots[py::str(std::to_string(slot))] = s.slot_rows[slot];
  }
  out["slots"] = slots;
  return out;
}

py::array_t<uint32_t> buckets_of(const Ids& ids, uint32_t buckets) {
  py::array_t<uint32_t> out(ids.size());
  uint32_t* to = out.mutable_data();
  for (py::ssize_t i = 0; i < ids.size(); ++i) to[i] = bucket_of(ids.data()[i], buckets);
  return out;
}

py::array_t<float> initial_values(const Ids& ids, int64_t dim, uint64_t seed, float stddev) {
  const InitialValues initial(seed, stddev);
  py::array_t<float> out({static_cast<py::ssize_t>(ids.size()), static_cast<py::ssize_t>(dim)});
  for (py::ssize_t i = 0; i < ids.size(); ++i) initial.fill(ids.data()[i], out.mutable_data() + i * dim, dim);
  return out;
}

}  // namespace

void bind_core(py::module_& m) {
  py::class_<Optimizer>(m, "Optimizer")
      .def(py::init(&make_optimizer), py::arg("kind"), py::arg("learning_rate"),
           py::arg("initial_accumulator"), py::arg("beta1"), py::arg("beta2"), py::arg("epsilon"),
           py::arg("beta"), py::arg("l1"), py::arg("l2"));
  py::class_<Core>(m, "Core")
      .def(py::init<uint32_t, uint64_t>(), py::arg("buckets"), py::arg("backlog_max") = ~uint64_t{0})
      .def("add_table", &add_table, py::arg("dim"), py::arg("optimizer"), py::arg("clip_norm"), py::arg("l2"),
           py::arg("stddev"), py::arg("seed"), py::arg("admission"), py::arg("admission_mode"),
           py::arg("filter_bytes"), py::arg("ttl_us"), py::arg("memory_limit_bytes"),
           py::arg("evict_least_recent"), py::arg("rows") = "float32",
           py::arg("half_lives_us") = std::vector<int64_t>())
      .def("add_dense", &add_dense, py::arg("optimizer"), py::arg("value"), py::arg("bucket"))
      .def("set_helpers", &Core::set_helpers, py::call_guard<py::gil_scoped_release>())
      .def("lookup", &lookup, py::arg("requests"), py::arg("with_dense"), py::arg("streams") = StreamAsked())
      .def("assign", &assign, py::arg("tables"), py::arg("epoch"),
           py::arg("gone") = std::vector<std::pair<int, Ids>>())
      .def("collect", &collect, py::arg("base"), py::arg("all"))
      .def("forget_touched", &Core::forget_touched, py::call_guard<py::gil_scoped_release>())
      .def("lost_epoch", &Core::lost_epoch, py::call_guard<py::gil_scoped_release>())
      .def("evict_expired", &Core::evict_expired, py::arg("table"), py::arg("first"), py::arg("n"),
           py::call_guard<py::gil_scoped_release>())
      .def("row_numbers", &Core::row_numbers, py::call_guard<py::gil_scoped_release>())
      .def("clock",
           [](const Core& c, int table) {
             const Table& t = c.table(table);
             return t.clock_started() ? std::optional<int64_t>(t.clock()) : std::nullopt;
           })
      .def("set_clock", &Core::set_clock, py::arg("table"), py::arg("ticks"))
      .def("epoch", &Core::epoch)
      .def("begin_cut", &begin_cut, py::arg("since") = -1, py::arg("saving") = false)
      .def("saved", &Core::saved, py::call_guard<py::gil_scoped_release>())
      .def("end_cut", &Core::end_cut, py::call_guard<py::gil_scoped_release>())
      .def(
          "bound_cut",
          [](Core& c, uint64_t bytes, double wait_s) {
            c.bound_cut(bytes, std::chrono::milliseconds(static_cast<int64_t>(wait_s * 1e3)));
          },
          py::arg("bytes_max"), py::arg("wait_s"), py::call_guard<py::gil_scoped_release>())
      .def("await_cut_room", &Core::await_cut_room, py::call_guard<py::gil_scoped_release>())
      .def("cut_rows", &Core::cut_rows)
      .def("read_cut", &read_cut, py::arg("table"), py::arg("rows"), py::arg("into") = std::optional<Bytes>())
      .def("cut_filter", [](const Core& c, int table) { return copy_bytes(c.cut_filter(table)); })
      .def("cut_gone",
           [](const Core& c, int table) {
             const std::vector<uint64_t>& gone = c.cut_gone(table);
             return py::array_t<uint64_t>(static_cast<py::ssize_t>(gone.size()), gone.data());
           })
      .def("cut_dense", [](const Core& c, int dense) { return copy_bytes(c.cut_dense(dense)); })
      .def("row_bytes", [](const Core& c, int table) { return c.table(table).row_bytes(); })
      .def("reserve", &Core::reserve, py::arg("table"), py::arg("rows"))
      .def("load_rows", &load_rows, py::arg("table"), py::arg("images"), py::arg("older") = false,
           py::arg("clock") = std::optional<int64_t>())
      .def("load_gone",
           [](Core& c, int table, const Ids& ids) { c.load_gone(table, ids.data(), ids.size()); })
      .def("end_load", &Core::end_load)
      .def("load_filter",
           [](Core& c, int table, const Bytes& b) { return c.load_filter(table, b.data(), b.size()); })
      .def("load_filter_buckets",
           [](Core& c, int table, const Bytes& b, uint32_t first, uint32_t end) {
             return c.load_filter_buckets(table, b.data(), b.size(), first, end);
           })
      .def("load_dense", [](Core& c, int i, const Bytes& b) { return c.load_dense(i, b.data(), b.size()); })
      .def("table_stats", &table_stats, py::arg("table"));
  py::class_<PushBuilder>(m, "Push")
      .def(py::init<>())
      .def("add_table", &PushBuilder::add_table, py::arg("core"), py::arg("table"), py::arg("ids"),
           py::arg("gradients"), py::arg("counts"))
      .def("add_counters", &PushBuilder::add_counters, py::arg("table"), py::arg("ids"), py::arg("amounts"),
           py::arg("times_us"))
      .def("add_recents", &PushBuilder::add_recents, py::arg("table"), py::arg("ids"), py::arg("values"),
           py::arg("times_us"))
      .def("add_dense", &PushBuilder::add_dense, py::arg("dense"), py::arg("gradient"))
      .def("apply", &PushBuilder::apply, py::arg("core"), py::arg("bucket_mask"),
           py::arg("event_time_us") = 0);
  m.def(
      "crc32c",
      [](const Bytes& bytes, uint32_t crc) {
        const uint8_t* from = bytes.data();
        const auto n = static_cast<size_t>(bytes.size());
        const py::gil_scoped_release release;
        return crc32c(from, n, crc);
      },
      py::arg("bytes"), py::arg("crc") = 0);
  m.def(
      "crc32c_by_table",
      [](const Bytes& bytes, uint32_t crc) { return crc32c_by_table(bytes.data(), bytes.size(), crc); },
      py::arg("bytes"), py::arg("crc") = 0);
  m.def("buckets_of", &buckets_of, py::arg("ids"), py::arg("buckets"));
  m.def("initial_values", &initial_values, py::arg("ids"), py::arg("dim"), py::arg("seed"),
        py::arg("stddev"));
}

}  // namespace cuckooflow
