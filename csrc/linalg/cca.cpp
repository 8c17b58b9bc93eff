#include "linalg/cca.h"

#include <algorithm>
#include <cmath>

namespace streamcca {
namespace {

void scale_rows(Matrix* m, const std::vector<double>& eigenvalues, double power) {
  for (std::size_t i = 0; i < m->rows; ++i) {
    const double factor = std::pow(eigenvalues[i], power);
    for (std::size_t j = 0; j < m->cols; ++j) m->column(j)[i] *= factor;
  }
}

void scale_columns(Matrix* m, const std::vector<double>& eigenvalues, double power) {
  for (std::size_t j = 0; j < m->cols; ++j) {
    const double factor = std::pow(eigenvalues[j], power);
    for (std::size_t i = 0; i < m->rows; ++i) m->column(j)[i] *= factor;
  }
}

Matrix leading_columns(Matrix m, std::size_t count) {
  m.values.resize(m.rows * count);
  m.cols = count;
  return m;
}

Matrix transpose(const Matrix& m) {
  Matrix t(m.cols, m.rows);
  for (std::size_t j = 0; j < m.cols; ++j) {
    for (std::size_t i = 0; i < m.rows; ++i) t.column(i)[j] = m.column(j)[i];
  }
  return t;
}

// Signs are arbitrary; the largest x weight of every variate is made positive, so that runs can be compared.
void fix_signs(Cca* r) {
  for (std::size_t i = 0; i < r->correlations.size(); ++i) {
    const double* a = r->x_weights.column(i);
    const double* largest = std::max_element(a, a + r->x_weights.rows, [](double p, double q) { return std::fabs(p) < std::fabs(q); });
    if (r->x_weights.rows == 0 || *largest >= 0) continue;
    for (Matrix* m : {&r->x_weights, &r->y_weights, &r->x_coordinates, &r->y_coordinates}) {
      std::transform(m->column(i), m->column(i) + m->rows, m->column(i), [](double value) { return -value; });
    }
  }
}

}  // namespace

Cca correlate(const Lapack& lapack, const TruncatedView& x, const TruncatedView& y, const Matrix& cross) {
  const Matrix projected = multiply(lapack, x.vectors, true, cross, false);
  Matrix core = multiply(lapack, projected, false, y.vectors, false);
  scale_rows(&core, x.eigenvalues, -0.5);
  scale_columns(&core, y.eigenvalues, -0.5);
  Svd svd = thin_svd(lapack, std::move(core));

  Cca result;
  result.correlations = svd.s;
  for (double& rho : result.correlations) rho = std::min(1.0, std::max(0.0, rho));
  const std::size_t m = result.correlations.size();
  result.x_coordinates = leading_columns(std::move(svd.u), m);
  result.y_coordinates = transpose(svd.vt);
  scale_rows(&result.x_coordinates, x.eigenvalues, -0.5);
  scale_rows(&result.y_coordinates, y.eigenvalues, -0.5);
  result.x_weights = multiply(lapack, x.vectors, false, result.x_coordinates, false);
  result.y_weights = multiply(lapack, y.vectors, false, result.y_coordinates, false);
  fix_signs(&result);
  return result;
}

std::vector<double> projection_weights(const Lapack& lapack, const TruncatedView& view, const Matrix& coordinates) {
  // cov(x, variate) = V L V' a = V L coordinates, since the variate lies in the kept subspace.
  Matrix loadings = coordinates;
  scale_rows(&loadings, view.eigenvalues, 1.0);
  const Matrix covariances = multiply(lapack, view.vectors, false, loadings, false);
  std::vector<double> weights(coordinates.cols, 0.0);
  for (std::size_t i = 0; i < coordinates.cols; ++i) {
    for (std::size_t j = 0; j < view.width; ++j) weights[i] += std::fabs(covariances.column(i)[j]) * view.scale[j];
  }
  return weights;
}

}  // namespace streamcca
