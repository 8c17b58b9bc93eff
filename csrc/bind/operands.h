// Matrices that lie elsewhere, on a device say, behind a Python object with the methods of the interface (streamcca.device_algebra).
// Small matrices cross over as NumPy arrays. Called without the GIL.
#pragma once
#include <pybind11/pybind11.h>

#include <vector>

#include "linalg/cross.h"
#include "linalg/symmetric.h"

namespace streamcca {

// Hidden, as pybind11's own types are.
class __attribute__((visibility("hidden"))) SymmetricOperand final : public SymmetricMatrix {
 public:
  SymmetricOperand(pybind11::object operand, std::size_t size) : operand_(std::move(operand)), size_(size) {}
  std::size_t size() const override { return size_; }
  void prepare(const std::vector<bool>& live, double ridge, const std::vector<double>& scale) override;
  double sum_of_squares() const override;
  Matrix multiply(const Matrix& block) const override;
  bool none_above(const Matrix& root, double level) const override;
  std::vector<double> decompose(std::size_t at_least) override;
  Matrix leading(std::size_t count, std::vector<double>* eigenvalues) override;

 private:
  pybind11::object operand_;
  std::size_t size_;
};

class __attribute__((visibility("hidden"))) CrossOperand final : public CrossMatrix {
 public:
  explicit CrossOperand(pybind11::object operand) : operand_(std::move(operand)) {}
  ~CrossOperand() override;
  void scale(const std::vector<double>& row_factors, const std::vector<double>& col_factors) override;
  Matrix project(const Matrix& left, const Matrix& right) const override;
  Matrix multiply(const Matrix& block) const override;
  Matrix multiply_transposed(const Matrix& block) const override;

 private:
  pybind11::object operand_;
};

}  // namespace streamcca
