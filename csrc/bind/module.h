// The parts of the extension module; each adds its functions and classes.
#pragma once
#include <pybind11/pybind11.h>

namespace streamcca {

void bind_errors(pybind11::module_& m);
void bind_accumulator(pybind11::module_& m);
void bind_linalg(pybind11::module_& m);
void bind_system(pybind11::module_& m);

}  // namespace streamcca
