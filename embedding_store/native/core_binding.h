// Python's view of the core; see core_binding.cc.
#pragma once

#include <pybind11/pybind11.h>

namespace cuckooflow {

void bind_core(pybind11::module_& m);

}  // namespace cuckooflow
