#include "linalg/error_bound.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>

#include "core/units.h"

namespace streamcca {
namespace {

constexpr double kSafety = 8;        // standard deviations
constexpr double kSvdBackward = 16;  // of the final SVD, in unit roundoffs times k^(1/2)
constexpr int kProbes = 12;

double square(double x) { return x * x; }

// One side of the problem, with what all bounds need. a_i = V w_i are its canonical weights.
struct Side {
  const Lapack& lapack;
  const TruncatedView& view;
  const Matrix& weights;           // d x m, a
  const Matrix& coordinates;       // k x m, w
  std::vector<double> size;        // d: errors of the covariance have deviation size_i size_j
  double solver;                   // deviation of an entry of LAPACK's backward error
  std::vector<double> noise;       // m, |D a_i|^2 with D = diag(size)
  std::vector<double> length;      // m, |a_i|^2
  std::vector<double> directions;  // k, |D v_p|^2

  Side(const Lapack& l, const TruncatedView& v, const Matrix& a, const Matrix& w) : lapack(l), view(v), weights(a), coordinates(w) {
    for (double raw : v.error.raw) size.push_back(std::sqrt(v.error.relative * raw));
    // A symmetric matrix of independent entries has norm 2 sqrt(d) times their deviation; twice that, since for
    // a few neurons the solver's error is no such matrix.
    solver = v.backward_error / std::sqrt(static_cast<double>(v.width));
    noise = norms(a, size);
    length = norms(a, std::vector<double>(v.width, 1.0));
    directions = norms(v.vectors, size);
  }

  double gap(std::size_t p) const { return std::max(view.eigenvalues[p] - view.next_eigenvalue, kUnit64 * view.eigenvalues[0]); }

  static std::vector<double> norms(const Matrix& m, const std::vector<double>& sizes) {
    std::vector<double> result(m.cols, 0.0);
    for (std::size_t j = 0; j < m.cols; ++j) {
      for (std::size_t i = 0; i < m.rows; ++i) result[j] += square(sizes[i] * m.column(j)[i]);
    }
    return result;
  }
};

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

// Sum of |D R diag(share) W' diag(1/gap) V' D|^2 for the R below, with V_rest' Sxy B bounded: (I - diag(rho^2)) is at
// least what is left of the other variates' variances, so R'R is at most next_eigenvalue times that.
double bounded_turn(const Side& side, const Variates& v, const std::vector<double>& shares, const std::vector<double>& inverse_gaps,
                    const std::vector<double>& size) {
  Matrix coordinates = side.coordinates;
  scale_rows(&coordinates, inverse_gaps);
  const std::vector<double> lengths = Side::norms(multiply(side.lapack, side.view.vectors, coordinates), size);
  const double largest = square(*std::max_element(size.begin(), size.end()));
  double sum = 0;
  for (std::size_t i = 0; i < shares.size(); ++i) sum += square(shares[i]) * (1 - square(v.correlations[i])) * lengths[i];
  return largest * side.view.next_eigenvalue * sum;
}

// What takes the other side's vectors to this one's neurons: the cross covariance, or its transpose; null if unknown.
struct Across {
  const CrossMatrix* cross = nullptr;
  bool transposed = false;
  Matrix operator()(const Matrix& block) const { return transposed ? cross->multiply_transposed(block) : cross->multiply(block); }
};

// Variance of the weighted mean through this side's own covariance. With E its error,
//   d rho_i = -1/2 rho_i a_i' E a_i + (turn of the kept subspace),
// where the turn moves a_i by V_rest C w_i, C_jp = v_j' E v_p / (lambda_p - lambda_j), and adds
// (V_rest C w_i)' Sxy b_i. The gradient is  -1/2 A diag(share rho) A' + R diag(share) W' diag(1/gap) V',
// R = (I - V V') Sxy B; using the gap to the first discarded direction for all j enlarges the turn.
double own_variance(const Side& side, const Side& other, const Across& across, const Variates& v, const std::vector<double>& shares,
                    const std::vector<double>& size) {
  const Lapack& l = side.lapack;
  Matrix z = signs(side.view.width);
  scale_rows(&z, size);
  Matrix within = multiply_transposed(l, side.weights, z);
  std::vector<double> inverse_gaps, pull;
  for (std::size_t p = 0; p < side.view.rank; ++p) inverse_gaps.push_back(1 / side.gap(p));
  for (std::size_t i = 0; i < shares.size(); ++i) pull.push_back(-0.5 * shares[i] * v.correlations[i]);
  scale_rows(&within, pull);
  Matrix gradient = multiply(l, side.weights, within);
  if (!across.cross) {
    scale_rows(&gradient, size);
    const double turn = bounded_turn(side, v, shares, inverse_gaps, size);
    return 2 * square(std::sqrt(sum_of_squares(gradient) / kProbes) + std::sqrt(turn));
  }
  Matrix turned = multiply_transposed(l, side.view.vectors, z);
  scale_rows(&turned, inverse_gaps);
  Matrix mixed = multiply_transposed(l, side.coordinates, turned);
  scale_rows(&mixed, shares);
  const Matrix outside = across(multiply(l, other.weights, mixed));
  const Matrix inside = multiply(l, side.view.vectors, multiply_transposed(l, side.view.vectors, outside));
  for (std::size_t i = 0; i < gradient.values.size(); ++i) gradient.values[i] += outside.values[i] - inside.values[i];
  scale_rows(&gradient, size);
  return 2 * sum_of_squares(gradient) / kProbes;  // 2: both triangles carry the same error
}

double cross_variance(const Side& x, const Side& y, const std::vector<double>& shares) {
  Matrix z = signs(y.view.width);
  scale_rows(&z, y.size);
  Matrix inner = multiply_transposed(x.lapack, y.weights, z);
  scale_rows(&inner, shares);
  Matrix outer = multiply(x.lapack, x.weights, inner);
  scale_rows(&outer, x.size);
  return sum_of_squares(outer) / kProbes;
}

// Variance of one correlation through this side. What the discarded directions can say about the other
// variate is at most next_eigenvalue * (1 - rho^2), since its variance is 1 and the kept ones explain rho^2.
double single_variance(const Side& side, std::size_t i, double rho) {
  double turn = 0, solver_turn = 0;
  for (std::size_t p = 0; p < side.view.rank; ++p) {
    const double w = square(side.coordinates.column(i)[p] / side.gap(p));
    turn += w * side.directions[p];
    solver_turn += w;
  }
  const double largest = square(*std::max_element(side.size.begin(), side.size.end()));
  const double unexplained = side.view.next_eigenvalue * (1 - square(rho));
  const double within = 0.25 * (square(side.noise[i]) + square(side.solver * side.length[i]));
  return 2 * (within + unexplained * (largest * turn + square(side.solver) * solver_turn));
}

// The bound is largest where a correlation itself may be smaller than it was computed (next to 1, 1 - rho^2
// vanishes), so it is taken at the lower end of the interval that it gives.
double single_deviation(const Side& x, const Side& y, std::size_t i, double rho) {
  double deviation = 0;
  for (int round = 0; round < 3; ++round) {
    const double low = std::max(0.0, rho - kSafety * deviation);
    deviation = std::sqrt(x.noise[i] * y.noise[i] + single_variance(x, i, low) + single_variance(y, i, low));
  }
  return deviation;
}

// Correlations that lie closer than their errors mix: each of c such moves by up to sqrt(c) of the largest
// deviation among them.
std::vector<double> widen_clusters(const std::vector<double>& rho, const std::vector<double>& alone) {
  std::vector<double> result = alone;
  const double reach = 4 * std::sqrt(static_cast<double>(rho.size()));
  for (std::size_t i = 0; i < rho.size(); ++i) {
    double members = 0, largest = alone[i];
    for (std::size_t j = 0; j < rho.size(); ++j) {
      if (std::fabs(rho[i] - rho[j]) > reach * std::max(alone[i], alone[j])) continue;
      ++members;
      largest = std::max(largest, alone[j]);
    }
    result[i] = largest * std::max(1.0, 0.5 * std::sqrt(members));
  }
  return result;
}

// Correlations within their error of 1 are cut off there, so their errors all point down and do not average out.
double clipping_bias(const std::vector<double>& rho, const std::vector<double>& deviations, const std::vector<double>& shares) {
  double bias = 0;
  for (std::size_t i = 0; i < rho.size(); ++i) {
    if (1 - rho[i] < 3 * deviations[i]) bias += shares[i] * deviations[i];
  }
  return bias;
}

// Collects what turning variates into each other does to a mean: turns of known small deviation, and turns
// that are wholly undetermined because the correlations tie within their errors.
class Turns {
 public:
  // `angle2`: variance of the angle, to first order; `effect`: change of the mean by a unit angle.
  void add(double angle2, double effect) { (angle2 < 1 ? small_ : free_) += square(effect) * std::min(1.0, angle2); }
  // A free turn is no Gaussian: it cannot exceed its spread. Observed changes stay below a tenth of it.
  double bound() const { return kSafety * std::sqrt(small_) + std::sqrt(free_); }

 private:
  double small_ = 0, free_ = 0;
};

// What moving shares add to the error of the mean f = sum alpha_i rho_i / sum alpha. A small error turns variate i
// towards j by an angle of deviation tau sqrt(rho_i^2 + rho_j^2) / |rho_i^2 - rho_j^2|, where tau is the error of
// one entry of the core matrix; then
//   d alpha_i = angle * beta_ij,  beta_ij = sum_neurons sign(loading_i) loading_j,
// and f moves by [(rho_i - f) beta_ij - (rho_j - f) beta_ji] * angle / sum alpha. Kept directions outside the m
// variates count as partners of correlation 0.
double moving_shares_bound(const Side& side, const Side& other, const Variates& v, const std::vector<double>& shares, const Matrix& loads) {
  const std::size_t m = shares.size();
  const std::vector<double>& rho = v.correlations;
  Matrix sign = loads;
  for (double& value : sign.values) value = value < 0 ? -1 : 1;
  const Matrix beta = multiply_transposed(side.lapack, sign, loads);
  double total = 0;
  for (std::size_t i = 0; i < m; ++i) total += beta.column(i)[i];
  const double mean = std::inner_product(shares.begin(), shares.end(), rho.begin(), 0.0);
  const auto core_variance = [&](std::size_t i, std::size_t j) {
    const double solver = square(side.solver) * side.length[i] * side.length[j] + square(other.solver) * other.length[i] * other.length[j];
    return (side.noise[i] + other.noise[i]) * (side.noise[j] + other.noise[j]) + solver + square(kUnit64);
  };
  Turns turns;
  for (std::size_t i = 0; i < m; ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      const double distance = std::max(kUnit64, std::fabs(square(rho[i]) - square(rho[j])));
      const double effect = ((rho[i] - mean) * beta.column(j)[i] - (rho[j] - mean) * beta.column(i)[j]) / total;
      turns.add(core_variance(i, j) * (square(rho[i]) + square(rho[j])) / square(distance), effect);
    }
  }
  if (side.view.rank == m) return turns.bound();

  // All kept directions, in the basis of the eigenvectors: what the m variates do not span is the rest.
  Matrix all = sign;
  scale_rows(&all, side.view.scale);
  all = multiply_transposed(side.lapack, side.view.vectors, all);
  std::vector<double> roots = side.view.eigenvalues;
  for (double& root : roots) root = std::sqrt(root);
  scale_rows(&all, roots);
  for (std::size_t i = 0; i < m; ++i) {
    double rest = 0, core = 0;
    for (std::size_t p = 0; p < all.rows; ++p) rest += square(all.column(i)[p]);
    for (std::size_t j = 0; j < m; ++j) {
      rest -= square(beta.column(j)[i]);
      core = std::max(core, core_variance(i, j));
    }
    turns.add(core / square(std::max(rho[i], kUnit64)), (rho[i] - mean) / total * std::sqrt(std::max(0.0, rest)));
  }
  return turns.bound();
}

double mean_variance(const Side& x, const Side& y, const CrossMatrix* cross, const Variates& v, const std::vector<double>& shares) {
  const std::vector<double> x_solver(x.view.width, std::sqrt(x.solver)), y_solver(y.view.width, std::sqrt(y.solver));
  const Across there{cross, false}, back{cross, true};
  return cross_variance(x, y, shares) + own_variance(x, y, there, v, shares, x.size) + own_variance(x, y, there, v, shares, x_solver) +
         own_variance(y, x, back, v, shares, y.size) + own_variance(y, x, back, v, shares, y_solver);
}

ErrorBound bound_of(const Side& x, const Side& y, const Variates& v, const std::vector<double>& shares, double variance) {
  const double floor = kSvdBackward * kUnit64 * std::sqrt(static_cast<double>(std::max(x.view.rank, y.view.rank)));
  std::vector<double> deviations;
  for (std::size_t i = 0; i < shares.size(); ++i) deviations.push_back(single_deviation(x, y, i, v.correlations[i]));
  deviations = widen_clusters(v.correlations, deviations);
  ErrorBound bound;
  for (double deviation : deviations) bound.correlations.push_back(std::min(1.0, kSafety * deviation + floor));
  bound.mean = std::min(1.0, kSafety * std::sqrt(variance) + clipping_bias(v.correlations, deviations, shares) + floor);
  return bound;
}

}  // namespace

ErrorBound error_bound(const Lapack& lapack, const TruncatedView& x, const TruncatedView& y, const CrossMatrix* cross, const Variates& v,
                       const std::vector<double>& shares) {
  const Side sx(lapack, x, v.x_weights, v.x_coordinates), sy(lapack, y, v.y_weights, v.y_coordinates);
  return bound_of(sx, sy, v, shares, mean_variance(sx, sy, cross, v, shares));
}

ErrorBound projection_error_bound(const Lapack& lapack, const TruncatedView& x, const TruncatedView& y, const CrossMatrix* cross,
                                  const Variates& v, const std::vector<double>& shares, const Matrix& loadings, bool of_x) {
  const Side sx(lapack, x, v.x_weights, v.x_coordinates), sy(lapack, y, v.y_weights, v.y_coordinates);
  ErrorBound bound = bound_of(sx, sy, v, shares, mean_variance(sx, sy, cross, v, shares));
  bound.shares = of_x ? moving_shares_bound(sx, sy, v, shares, loadings) : moving_shares_bound(sy, sx, v, shares, loadings);
  return bound;
}

}  // namespace streamcca
