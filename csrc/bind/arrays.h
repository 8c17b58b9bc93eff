// Between Python arrays and the kernels' types.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <utility>
#include <vector>

#include "core/rows.h"
#include "linalg/lapack.h"

namespace streamcca {

namespace py = pybind11;

// Rows of one view, borrowed from a NumPy array or anything with __dlpack__, and the object that keeps
// them alive. Nothing is copied. Throws Error naming the view for anything that is not a
// 2-D or 3-D array of float16, bfloat16, float32 or float64 in CPU memory.
struct Borrowed {
  Rows rows;
  py::object owner;
};
Borrowed borrow_rows(py::handle array, const std::string& view);

// NumPy array that takes over the values; no copy.
py::array to_array(std::vector<double>&& values, std::vector<py::ssize_t> shape);
py::array to_array(AlignedArray<double>&& values, std::vector<py::ssize_t> shape);
// d x k column-major matrix as a Fortran-ordered NumPy array.
py::array to_array(Matrix&& matrix);

using DoubleArray = py::array_t<double, py::array::c_style | py::array::forcecast>;
std::vector<double> to_vector(const DoubleArray& array);
// Row-major (r, c) array into a column-major matrix.
Matrix to_matrix(const DoubleArray& array);

}  // namespace streamcca
