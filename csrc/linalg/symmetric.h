// A large matrix that truncation only asks for products and decompositions, so that it can lie on a device. The entries of one in CPU
// memory are DenseSymmetric's, those of one elsewhere a caller's.
#pragma once
#include <cstddef>
#include <optional>
#include <vector>

#include "linalg/lapack.h"

namespace streamcca {

class SymmetricMatrix {
 public:
  SymmetricMatrix() = default;
  SymmetricMatrix(const SymmetricMatrix&) = delete;
  SymmetricMatrix& operator=(const SymmetricMatrix&) = delete;
  virtual ~SymmetricMatrix() = default;

  virtual std::size_t size() const = 0;
  // Rows and columns that are not `live` become zero, `ridge` is added to the diagonal of the others, then each entry is divided by
  // the scale of its row and of its column; 0 where a scale is 0.
  virtual void prepare(const std::vector<bool>& live, double ridge, const std::vector<double>& scale) = 0;
  virtual double sum_of_squares() const = 0;
  virtual Matrix multiply(const Matrix& block) const = 0;
  // Whether level I - (this - root root') is positive definite, as far as float64 can tell.
  virtual bool none_above(const Matrix& root, double level) const = 0;
  // All eigenvalues, largest first; the matrix is used up. `at_least`: how many eigenvectors will be asked for.
  virtual std::vector<double> decompose(std::size_t at_least) = 0;
  // After that: eigenvectors of the `count` largest, size x count, and the values that belong to them.
  virtual Matrix leading(std::size_t count, std::vector<double>* eigenvalues) = 0;
};

class DenseSymmetric final : public SymmetricMatrix {
 public:
  DenseSymmetric(const Lapack& lapack, Matrix values) : lapack_(lapack), values_(std::move(values)) {}
  std::size_t size() const override { return values_.rows; }
  void prepare(const std::vector<bool>& live, double ridge, const std::vector<double>& scale) override;
  double sum_of_squares() const override;
  Matrix multiply(const Matrix& block) const override;
  bool none_above(const Matrix& root, double level) const override;
  std::vector<double> decompose(std::size_t at_least) override;
  Matrix leading(std::size_t count, std::vector<double>* eigenvalues) override;

 private:
  const Lapack& lapack_;
  Matrix values_;
  std::optional<Spectrum> spectrum_;
};

// value / a / b, 0 where a or b is.
double quotient(double value, double a, double b);

}  // namespace streamcca
