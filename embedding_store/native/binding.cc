// Python bindings of the native core. Arrays come in and go out as numpy; the GIL is released around
// batch work. Arguments are checked by the Python side; no exception crosses the binding.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "core_binding.h"
#include "distinct_rows.h"
#include "hash_index.h"
#include "hashing.h"

namespace py = pybind11;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <typename Offset>
py::array_t<uint64_t> hash_strings(const Array<Offset>& offsets, const Array<uint8_t>& data, uint64_t seed) {
  const int64_t n = offsets.size() - 1;
  py::array_t<uint64_t> out(n);
  uint64_t* o = out.mutable_data();
  const Offset* at = offsets.data();
  const uint8_t* bytes = data.data();
  py::gil_scoped_release release;
  for (int64_t i = 0; i < n; ++i) o[i] = cuckooflow::hash_bytes(bytes + at[i], at[i + 1] - at[i], seed);
  return out;
}

py::array_t<uint64_t> hash_ints(const Array<uint64_t>& values, uint64_t seed) {
  const int64_t n = values.size();
  py::array_t<uint64_t> out(n);
  uint64_t* o = out.mutable_data();
  const uint64_t* v = values.data();
  const uint64_t start = cuckooflow::mix64(seed + 0x9e3779b97f4a7c15ULL);
  py::gil_scoped_release release;
  for (int64_t i = 0; i < n; ++i) o[i] = cuckooflow::mix64(cuckooflow::mix64(v[i] ^ start) + start);
  return out;
}

template <typename T>
py::array_t<T> copied(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::tuple distinct_ids(const Array<uint64_t>& places, const std::optional<Array<float>>& weights) {
  const int64_t n = places.size();
  py::array_t<uint64_t> ids(n);
  py::array_t<int32_t> inverse(n);
  py::array_t<uint32_t> counts(n);
  int64_t found = 0;
  {
    const float* w = weights ? weights->data() : nullptr;
    uint64_t* i = ids.mutable_data();
    int32_t* to = inverse.mutable_data();
    uint32_t* c = counts.mutable_data();
    py::gil_scoped_release release;
    found = cuckooflow::distinct_ids(places.data(), w, n, i, to, c);
  }
  ids.resize({found});
  counts.resize({found});
  return py::make_tuple(ids, inverse, counts);
}

// The (B, C) places of `inverse`, with one more bound than there are fields.
cuckooflow::FieldPlaces field_places(const Array<int32_t>& inverse, const Array<int32_t>& bounds) {
  return {bounds.data(), bounds.size() - 1, inverse.shape(0)};
}

void pool_rows(const Array<float>& rows, const Array<int32_t>& inverse, const Array<float>& weights,
               const Array<int32_t>& bounds, py::array_t<float>& out) {
  const int64_t dim = rows.shape(1);
  const auto in = field_places(inverse, bounds);
  float* o = out.mutable_data();
  py::gil_scoped_release release;
  cuckooflow::pool_rows(rows.data(), dim, inverse.data(), weights.data(), in, o);
}

py::array_t<float> spread_rows(const Array<float>& gradients, const Array<int32_t>& inverse,
                               const Array<float>& weights, const Array<int32_t>& bounds, int64_t rows) {
  const int64_t dim = gradients.shape(gradients.ndim() - 1);
  const auto in = field_places(inverse, bounds);
  py::array_t<float> sums({rows, dim});
  float* s = sums.mutable_data();
  py::gil_scoped_release release;
  std::fill(s, s + rows * dim, 0.0F);
  cuckooflow::spread_rows(gradients.data(), dim, inverse.data(), weights.data(), in, s);
  return sums;
}

void bind_hash_index(py::module_* m) {
  using cuckooflow::HashIndex;
  py::class_<HashIndex>(*m, "HashIndex")
      .def(py::init<>())
      .def("__len__", &HashIndex::size)
      .def_property_readonly("nbytes", &HashIndex::bytes)
      .def("add",
           [](HashIndex& index, const Array<uint64_t>& keys, const Array<int64_t>& values) {
             const uint64_t* k = keys.data();
             const int64_t* v = values.data();
             const int64_t n = keys.size();
             py::gil_scoped_release release;
             index.add(k, v, n);
           })
      .def("lookup",
           [](const HashIndex& index, const Array<uint64_t>& queries) {
             std::vector<int64_t> which;
             std::vector<int64_t> values;
             const uint64_t* q = queries.data();
             const int64_t n = queries.size();
             {
               py::gil_scoped_release release;
               index.lookup(q, n, &which, &values);
             }
             return py::make_tuple(copied(which), copied(values));
           })
      .def("entries", [](const HashIndex& index) {
        py::array_t<uint64_t> keys(index.size());
        py::array_t<int64_t> values(index.size());
        index.entries(keys.mutable_data(), values.mutable_data());
        return py::make_tuple(keys, values);
      });
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Native core of cuckooflow's embedding store.";
  m.def("hash_strings32", &hash_strings<int32_t>);
  m.def("hash_strings64", &hash_strings<int64_t>);
  m.def("hash_ints", &hash_ints);
  m.def("distinct_ids", &distinct_ids);
  m.def("pool_rows", &pool_rows);
  m.def("spread_rows", &spread_rows);
  bind_hash_index(&m);
  cuckooflow::bind_core(m);
}
