#include "linalg/cca.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "linalg/error_bound.h"

namespace streamcca {
namespace {

std::vector<double> power(std::vector<double> values, double exponent) {
  for (double& value : values) value = std::pow(value, exponent);
  return values;
}

std::vector<double> inverse_or_zero(std::vector<double> values) {
  for (double& value : values) value = value > 0 ? 1 / value : 0;
  return values;
}

// Signs are arbitrary; the largest x weight of every variate is made positive, so that runs can be compared.
void fix_signs(Variates* v) {
  for (std::size_t i = 0; i < v->correlations.size(); ++i) {
    const double* a = v->x_weights.column(i);
    const double* largest = std::max_element(a, a + v->x_weights.rows, [](double p, double q) { return std::fabs(p) < std::fabs(q); });
    if (*largest >= 0) continue;
    for (Matrix* m : {&v->x_weights, &v->y_weights, &v->x_coordinates, &v->y_coordinates}) {
      std::transform(m->column(i), m->column(i) + m->rows, m->column(i), [](double value) { return -value; });
    }
  }
}

// alpha_i = sum_j |cov(variate_i, neuron_j)| (Morcos, Raghu & Bengio 2018), normalized.
std::vector<double> projection_shares(const Matrix& neuron_loadings) {
  std::vector<double> shares(neuron_loadings.cols, 0.0);
  for (std::size_t i = 0; i < shares.size(); ++i) {
    for (std::size_t j = 0; j < neuron_loadings.rows; ++j) shares[i] += std::fabs(neuron_loadings.column(i)[j]);
  }
  const double total = std::accumulate(shares.begin(), shares.end(), 0.0);
  for (double& share : shares) share /= total;
  return shares;
}

}  // namespace

Variates canonical_variates(const Lapack& lapack, const TruncatedView& x, const TruncatedView& y, Matrix kept) {
  const std::vector<double> x_root = power(x.eigenvalues, -0.5), y_root = power(y.eigenvalues, -0.5);
  scale_rows(&kept, x_root);
  scale_columns(&kept, y_root);
  Svd svd = thin_svd(lapack, std::move(kept));

  Variates v;
  v.correlations = std::move(svd.s);
  for (double& rho : v.correlations) rho = std::min(1.0, std::max(0.0, rho));
  v.x_coordinates = std::move(svd.u);
  v.y_coordinates = transpose(svd.vt);
  scale_rows(&v.x_coordinates, x_root);
  scale_rows(&v.y_coordinates, y_root);
  v.x_weights = multiply(lapack, x.vectors, v.x_coordinates);
  v.y_weights = multiply(lapack, y.vectors, v.y_coordinates);
  fix_signs(&v);
  return v;
}

Matrix loadings(const Lapack& lapack, const TruncatedView& view, const Matrix& coordinates) {
  // cov(x, variate) = V L V' a = V L coordinates, since the variate lies in the kept subspace.
  Matrix scaled = coordinates;
  scale_rows(&scaled, view.eigenvalues);
  Matrix result = multiply(lapack, view.vectors, scaled);
  scale_rows(&result, view.scale);
  return result;
}

Canonical canonical(const Lapack& lapack, const TruncatedView& x, const TruncatedView& y, std::shared_ptr<CrossMatrix> cross) {
  cross->scale(inverse_or_zero(x.scale), inverse_or_zero(y.scale));
  return {canonical_variates(lapack, x, y, cross->project(x.vectors, y.vectors)), std::move(cross)};
}

Canonical canonical_kept(const Lapack& lapack, const TruncatedView& x, const TruncatedView& y, Matrix kept) {
  return {canonical_variates(lapack, x, y, std::move(kept)), nullptr};
}

Comparison compare(const Lapack& lapack, const TruncatedView& x, const TruncatedView& y, const Canonical& found, MeanOver mean_over) {
  const Variates& v = found.variates;
  const CrossMatrix* cross = found.cross.get();
  Comparison result;
  ErrorBound bound;
  if (mean_over == MeanOver::correlations) {
    result.shares.assign(v.correlations.size(), 1.0 / static_cast<double>(v.correlations.size()));
    bound = error_bound(lapack, x, y, cross, v, result.shares);
  } else {
    const bool of_x = mean_over == MeanOver::projection_x;
    const Matrix l = of_x ? loadings(lapack, x, v.x_coordinates) : loadings(lapack, y, v.y_coordinates);
    result.shares = projection_shares(l);
    bound = projection_error_bound(lapack, x, y, cross, v, result.shares, l, of_x);
  }
  result.mean = std::inner_product(result.shares.begin(), result.shares.end(), v.correlations.begin(), 0.0);
  result.mean_error_bound = bound.mean;
  result.shares_error_bound = bound.shares;
  result.correlation_error_bounds = std::move(bound.correlations);
  result.correlations = v.correlations;
  result.x_weights = v.x_weights;
  result.y_weights = v.y_weights;
  scale_rows(&result.x_weights, inverse_or_zero(x.scale));
  scale_rows(&result.y_weights, inverse_or_zero(y.scale));
  return result;
}

}  // namespace streamcca
