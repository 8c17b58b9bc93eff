#include "linalg/error_bound.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace streamcca {
namespace {

constexpr double kUnit = 1.1102230246251565e-16;  // 2^-53
constexpr double kSafety = 8;                     // standard deviations
constexpr double kSvdBackward = 16;               // of the final SVD, in unit roundoffs times k^(1/2)
constexpr int kProbes = 12;

double square(double x) { return x * x; }

// One side of the problem, with what both bounds need. a_i = V w_i are its canonical weights.
struct Side {
  const Lapack& lapack;
  const TruncatedView& view;
  const Matrix& weights;      // d x m, a
  const Matrix& coordinates;  // k x m, w
  std::vector<double> size;   // d, sqrt(relative) * sqrt(raw): cov errors have deviation size_i size_j
  double solver;              // d, deviation of an entry of LAPACK's backward error

  Side(const Lapack& l, const TruncatedView& v, const Matrix& a, const Matrix& w) : lapack(l), view(v), weights(a), coordinates(w) {
    for (double raw : v.uncertainty.raw) size.push_back(std::sqrt(v.uncertainty.relative * raw));
    // A symmetric matrix of independent entries has norm 2 sqrt(d) times their deviation.
    solver = v.backward_error / (2 * std::sqrt(static_cast<double>(v.width)));
  }
  double gap(std::size_t p) const { return std::max(view.eigenvalues[p] - view.next_eigenvalue, kUnit * view.eigenvalues[0]); }
};

Matrix times(const Lapack& l, const Matrix& a, const Matrix& b) { return multiply(l, a, false, b, false); }
Matrix transposed_times(const Lapack& l, const Matrix& a, const Matrix& b) { return multiply(l, a, true, b, false); }

void scale_rows(Matrix* m, const std::vector<double>& factors) {
  for (std::size_t j = 0; j < m->cols; ++j) {
    for (std::size_t i = 0; i < m->rows; ++i) m->column(j)[i] *= factors[i];
  }
}

double sum_of_squares(const Matrix& m) {
  double total = 0;
  for (double value : m.values) total += value * value;
  return total;
}

// Fixed pseudo-random signs: E |G z|^2 = |G|_F^2, so a few products with vectors measure a gradient
// that is never formed (Hutchinson). Fixed, so that equal moments give equal bounds.
Matrix signs(std::size_t rows) {
  Matrix z(rows, kProbes);
  std::uint64_t state = 0x9e3779b97f4a7c15u;
  for (double& value : z.values) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    value = state & 0x10000 ? 1.0 : -1.0;
  }
  return z;
}

// Variance of the weighted mean through this side's own covariance. With E its error,
//   d rho_i = -1/2 rho_i a_i' E a_i + (turn of the kept subspace),
// where the turn moves a_i by V_rest C w_i, C_jp = v_j' E v_p / (lambda_p - lambda_j), and adds
// (V_rest C w_i)' Sxy b_i. The gradient is  -1/2 A diag(share rho) A' + R diag(share) W' diag(1/gap) V',
// R = (I - V V') Sxy B; using the gap to the first discarded direction for all j enlarges the turn.
// `cross` has this side's neurons as rows unless `transposed`.
double own_variance(const Side& side, const Side& other, const Matrix& cross, bool transposed, const Cca& cca,
                    const std::vector<double>& shares, const std::vector<double>& size) {
  const Lapack& l = side.lapack;
  Matrix z = signs(side.view.width);
  scale_rows(&z, size);

  Matrix within = transposed_times(l, side.weights, z);
  Matrix turned = transposed_times(l, side.view.vectors, z);
  for (std::size_t j = 0; j < turned.cols; ++j) {
    for (std::size_t p = 0; p < turned.rows; ++p) turned.column(j)[p] /= side.gap(p);
  }
  Matrix mixed = transposed_times(l, side.coordinates, turned);
  for (std::size_t j = 0; j < within.cols; ++j) {
    for (std::size_t i = 0; i < within.rows; ++i) {
      within.column(j)[i] *= -0.5 * shares[i] * cca.correlations[i];
      mixed.column(j)[i] *= shares[i];
    }
  }
  Matrix gradient = times(l, side.weights, within);
  const Matrix outside = multiply(l, cross, transposed, times(l, other.weights, mixed), false);
  const Matrix inside = times(l, side.view.vectors, transposed_times(l, side.view.vectors, outside));
  for (std::size_t i = 0; i < gradient.values.size(); ++i) gradient.values[i] += outside.values[i] - inside.values[i];
  scale_rows(&gradient, size);
  return 2 * sum_of_squares(gradient) / kProbes;  // 2: both triangles carry the same error
}

double cross_variance(const Side& x, const Side& y, const std::vector<double>& shares) {
  Matrix z = signs(y.view.width);
  scale_rows(&z, y.size);
  Matrix inner = transposed_times(x.lapack, y.weights, z);
  for (std::size_t j = 0; j < inner.cols; ++j) {
    for (std::size_t i = 0; i < inner.rows; ++i) inner.column(j)[i] *= shares[i];
  }
  Matrix outer = times(x.lapack, x.weights, inner);
  scale_rows(&outer, x.size);
  return sum_of_squares(outer) / kProbes;
}

// |D a_i|^2, with D the deviations.
double weighted_norm(const Side& side, std::size_t i) {
  double total = 0;
  for (std::size_t j = 0; j < side.view.width; ++j) total += square(side.size[j] * side.weights.column(i)[j]);
  return total;
}

double plain_norm(const Side& side, std::size_t i) {
  double total = 0;
  for (std::size_t j = 0; j < side.view.width; ++j) total += square(side.weights.column(i)[j]);
  return total;
}

// |D v_p|^2 for every kept direction.
std::vector<double> direction_sizes(const Side& side) {
  std::vector<double> result(side.view.rank, 0.0);
  for (std::size_t p = 0; p < side.view.rank; ++p) {
    for (std::size_t j = 0; j < side.view.width; ++j) result[p] += square(side.size[j] * side.view.vectors.column(p)[j]);
  }
  return result;
}

// Variance of one correlation through this side. What the discarded directions can say about the other
// variate is at most next_eigenvalue * (1 - rho^2), since its variance is 1 and the kept ones explain rho^2.
double single_variance(const Side& side, const std::vector<double>& directions, std::size_t i, double rho, double norm) {
  double turn = 0, solver_turn = 0;
  for (std::size_t p = 0; p < side.view.rank; ++p) {
    const double w = square(side.coordinates.column(i)[p] / side.gap(p));
    turn += w * directions[p];
    solver_turn += w;
  }
  const double largest = side.size.empty() ? 0 : square(*std::max_element(side.size.begin(), side.size.end()));
  const double unexplained = side.view.next_eigenvalue * (1 - square(rho));
  const double within = 0.25 * square(rho) * (square(norm) + square(side.solver * plain_norm(side, i)));
  return 2 * (within + unexplained * (largest * turn + square(side.solver) * solver_turn));
}

// Correlations that lie closer than their errors mix: c of them spread by up to 2 sqrt(c) deviations.
void widen_clusters(const std::vector<double>& rho, std::vector<double>* deviations) {
  const std::vector<double> alone = *deviations;
  const std::size_t m = rho.size();
  for (std::size_t i = 0; i < m; ++i) {
    const double reach = 4 * alone[i] * std::sqrt(static_cast<double>(m));
    const auto begin = std::partition_point(rho.begin(), rho.end(), [&](double r) { return r > rho[i] + reach; });
    const auto end = std::partition_point(rho.begin(), rho.end(), [&](double r) { return r >= rho[i] - reach; });
    (*deviations)[i] *= std::max(1.0, 0.5 * std::sqrt(static_cast<double>(end - begin)));
  }
}

// Correlations within their error of 1 are cut off there, so their errors all point down and do not average out.
double clipping_bias(const std::vector<double>& rho, const std::vector<double>& deviations, const std::vector<double>& shares) {
  double bias = 0;
  for (std::size_t i = 0; i < rho.size(); ++i) {
    if (1 - rho[i] < 3 * deviations[i]) bias += shares[i] * deviations[i];
  }
  return bias;
}

}  // namespace

ErrorBound error_bound(const Lapack& lapack, const TruncatedView& x, const TruncatedView& y, const Matrix& cross, const Cca& cca,
                       const std::vector<double>& shares) {
  const Side sx(lapack, x, cca.x_weights, cca.x_coordinates), sy(lapack, y, cca.y_weights, cca.y_coordinates);
  const std::size_t m = cca.correlations.size();
  const double floor = kSvdBackward * kUnit * std::sqrt(static_cast<double>(std::max(x.rank, y.rank)));

  ErrorBound bound;
  std::vector<double> deviations(m);
  const std::vector<double> x_directions = direction_sizes(sx), y_directions = direction_sizes(sy);
  for (std::size_t i = 0; i < m; ++i) {
    const double rho = cca.correlations[i], nx = weighted_norm(sx, i), ny = weighted_norm(sy, i);
    deviations[i] = std::sqrt(nx * ny + single_variance(sx, x_directions, i, rho, nx) + single_variance(sy, y_directions, i, rho, ny));
  }
  widen_clusters(cca.correlations, &deviations);
  for (double deviation : deviations) bound.correlations.push_back(std::min(1.0, kSafety * deviation + floor));

  const std::vector<double> x_solver(x.width, std::sqrt(sx.solver)), y_solver(y.width, std::sqrt(sy.solver));
  const double variance = cross_variance(sx, sy, shares) + own_variance(sx, sy, cross, false, cca, shares, sx.size) +
                          own_variance(sy, sx, cross, true, cca, shares, sy.size) +
                          own_variance(sx, sy, cross, false, cca, shares, x_solver) +
                          own_variance(sy, sx, cross, true, cca, shares, y_solver);
  bound.mean = std::min(1.0, kSafety * std::sqrt(variance) + clipping_bias(cca.correlations, deviations, shares) + floor);
  return bound;
}

}  // namespace streamcca
