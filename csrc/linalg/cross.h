// The cross covariance of two views, of which CCA only asks for products, so that it can lie on a device.
#pragma once
#include <vector>

#include "linalg/lapack.h"

namespace streamcca {

class CrossMatrix {
 public:
  CrossMatrix() = default;
  CrossMatrix(const CrossMatrix&) = delete;
  CrossMatrix& operator=(const CrossMatrix&) = delete;
  virtual ~CrossMatrix() = default;

  // diag(row_factors) this diag(col_factors).
  virtual void scale(const std::vector<double>& row_factors, const std::vector<double>& col_factors) = 0;
  virtual Matrix project(const Matrix& left, const Matrix& right) const = 0;  // left' this right
  virtual Matrix multiply(const Matrix& block) const = 0;
  virtual Matrix multiply_transposed(const Matrix& block) const = 0;  // this' block
};

class DenseCross final : public CrossMatrix {
 public:
  DenseCross(const Lapack& lapack, Matrix values) : lapack_(lapack), values_(std::move(values)) {}
  void scale(const std::vector<double>& row_factors, const std::vector<double>& col_factors) override {
    scale_rows(&values_, row_factors);
    scale_columns(&values_, col_factors);
  }
  Matrix project(const Matrix& left, const Matrix& right) const override {
    return streamcca::multiply(lapack_, streamcca::multiply_transposed(lapack_, left, values_), right);
  }
  Matrix multiply(const Matrix& block) const override { return streamcca::multiply(lapack_, values_, block); }
  Matrix multiply_transposed(const Matrix& block) const override { return streamcca::multiply_transposed(lapack_, values_, block); }

 private:
  const Lapack& lapack_;
  Matrix values_;
};

}  // namespace streamcca
