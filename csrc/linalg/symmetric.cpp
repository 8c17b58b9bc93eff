#include "linalg/symmetric.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace streamcca {

double quotient(double value, double a, double b) { return a > 0 && b > 0 ? value / a / b : 0; }

void DenseSymmetric::prepare(const std::vector<bool>& live, double ridge, const std::vector<double>& scale) {
  const std::size_t d = values_.rows;
  for (std::size_t dead = 0; dead < d; ++dead) {
    if (live[dead]) continue;
    for (std::size_t i = 0; i < d; ++i) values_.column(dead)[i] = values_.column(i)[dead] = 0;
  }
  for (std::size_t i = 0; i < d; ++i) values_.column(i)[i] += live[i] ? ridge : 0;
  int exponent = 0;
  const bool power_of_two = std::frexp(scale.front(), &exponent) == 0.5;
  if (power_of_two && std::all_of(scale.begin(), scale.end(), [&](double s) { return s == scale.front(); })) {
    // Products with the inverse are as exact, and faster.
    const double inverse = 1 / scale.front();
    for (double& value : values_.values) value = value * inverse * inverse;
    return;
  }
  for (std::size_t j = 0; j < d; ++j) {
    for (std::size_t i = 0; i < d; ++i) values_.column(j)[i] = quotient(values_.column(j)[i], scale[i], scale[j]);
  }
}

double DenseSymmetric::sum_of_squares() const { return streamcca::sum_of_squares(values_); }

Matrix DenseSymmetric::multiply(const Matrix& block) const { return streamcca::multiply(lapack_, values_, block); }

bool DenseSymmetric::none_above(const Matrix& root, double level) const {
  Matrix shifted = values_;
  outer_product_minus(lapack_, root, &shifted);
  for (std::size_t i = 0; i < shifted.rows; ++i) shifted.column(i)[i] += level;
  return has_cholesky_factor(lapack_, std::move(shifted));
}

std::vector<double> DenseSymmetric::decompose(std::size_t at_least) {
  spectrum_ = streamcca::decompose(lapack_, std::move(values_), at_least);
  return {spectrum_->eigenvalues.rbegin(), spectrum_->eigenvalues.rend()};
}

Matrix DenseSymmetric::leading(std::size_t count, std::vector<double>* eigenvalues) {
  return leading_eigenvectors(lapack_, std::move(*spectrum_), count, eigenvalues);
}

}  // namespace streamcca
