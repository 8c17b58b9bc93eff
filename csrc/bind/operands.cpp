#include "bind/operands.h"

#include <pybind11/numpy.h>

#include "bind/arrays.h"
#include "core/error.h"

namespace streamcca {
namespace {

py::array array_of(const Matrix& m) { return to_array(Matrix(m)); }

py::array array_of(const std::vector<double>& values) {
  return to_array(std::vector<double>(values), {static_cast<py::ssize_t>(values.size())});
}

Matrix checked(const py::object& result, std::size_t rows, std::size_t cols) {
  const auto array = py::cast<DoubleArray>(result);
  const bool fits =
      array.ndim() == 2 && array.shape(0) == static_cast<py::ssize_t>(rows) && array.shape(1) == static_cast<py::ssize_t>(cols);
  if (!fits) throw Error(ErrorKind::value, "operand: a product has another shape than its factors say");
  return to_matrix(array);
}

}  // namespace

void SymmetricOperand::prepare(const std::vector<bool>& live, double ridge, const std::vector<double>& scale) {
  const py::gil_scoped_acquire acquire;
  const std::vector<double> kept(live.begin(), live.end());
  operand_.attr("prepare")(array_of(kept), ridge, array_of(scale));
}

double SymmetricOperand::sum_of_squares() const {
  const py::gil_scoped_acquire acquire;
  return py::cast<double>(operand_.attr("sum_of_squares")());
}

Matrix SymmetricOperand::multiply(const Matrix& block) const {
  const py::gil_scoped_acquire acquire;
  return checked(operand_.attr("multiply")(array_of(block)), size_, block.cols);
}

bool SymmetricOperand::none_above(const Matrix& root, double level) const {
  const py::gil_scoped_acquire acquire;
  return py::cast<bool>(operand_.attr("none_above")(array_of(root), level));
}

std::vector<double> SymmetricOperand::decompose(std::size_t) {
  const py::gil_scoped_acquire acquire;
  std::vector<double> values = to_vector(py::cast<DoubleArray>(operand_.attr("decompose")()));
  if (values.size() != size_) throw Error(ErrorKind::value, "operand: got another number of eigenvalues than rows");
  return values;
}

Matrix SymmetricOperand::leading(std::size_t count, std::vector<double>* eigenvalues) {
  const py::gil_scoped_acquire acquire;
  const py::tuple found = operand_.attr("leading")(count);
  *eigenvalues = to_vector(py::cast<DoubleArray>(found[0]));
  return checked(found[1], size_, count);
}

// Whoever drops the last result may not hold the GIL.
CrossOperand::~CrossOperand() {
  const py::gil_scoped_acquire acquire;
  operand_ = py::object();
}

void CrossOperand::scale(const std::vector<double>& row_factors, const std::vector<double>& col_factors) {
  const py::gil_scoped_acquire acquire;
  operand_.attr("scale")(array_of(row_factors), array_of(col_factors));
}

Matrix CrossOperand::project(const Matrix& left, const Matrix& right) const {
  const py::gil_scoped_acquire acquire;
  return checked(operand_.attr("project")(array_of(left), array_of(right)), left.cols, right.cols);
}

Matrix CrossOperand::multiply(const Matrix& block) const {
  const py::gil_scoped_acquire acquire;
  return to_matrix(py::cast<DoubleArray>(operand_.attr("multiply")(array_of(block))));
}

Matrix CrossOperand::multiply_transposed(const Matrix& block) const {
  const py::gil_scoped_acquire acquire;
  return to_matrix(py::cast<DoubleArray>(operand_.attr("multiply_transposed")(array_of(block))));
}

}  // namespace streamcca
