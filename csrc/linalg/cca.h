// Canonical correlation analysis of two truncated views, with projection weights and error bounds.
#pragma once
#include <memory>
#include <vector>

#include "linalg/cross.h"
#include "linalg/truncate.h"

namespace streamcca {

// How the mean weighs the correlations: all alike (CCA, SVCCA), or by how much of one view's neurons each
// variate accounts for (PWCCA).
enum class MeanOver { correlations, projection_x, projection_y };

// Canonical variates in working coordinates (see TruncatedView): (x / scale_x) * a has unit variance.
struct Variates {
  std::vector<double> correlations;  // m = min(kx, ky), descending, in [0, 1]
  Matrix x_coordinates;              // kx x m: a = x.vectors * x_coordinates
  Matrix y_coordinates;              // ky x m
  Matrix x_weights;                  // dx x m, a
  Matrix y_weights;                  // dy x m, b
};

struct Comparison {
  double mean = 0;                   // sum of shares * correlations
  double mean_error_bound = 0;       // of rounding alone, for fixed shares
  double shares_error_bound = 0;     // what the rounding of PWCCA's shares adds
  std::vector<double> correlations;  // m, descending
  std::vector<double> correlation_error_bounds;
  std::vector<double> shares;   // weights of the mean, summing to 1
  Matrix x_weights, y_weights;  // d x m, in the neurons' own units
};

// What is found once of two views, however the mean weighs.
struct Canonical {
  Variates variates;
  std::shared_ptr<const CrossMatrix> cross;  // dx x dy, in working coordinates; null where only the kept directions were paired
};

// `cross` is the dx x dy cross covariance in the neurons' own units, and used up.
Canonical canonical(const Lapack& lapack, const TruncatedView& x, const TruncatedView& y, std::shared_ptr<CrossMatrix> cross);

// The same of the kx x ky covariance of the rows' projections on the kept directions, in working coordinates: what a
// second pass over the rows gives without any d x d. The error bound is wider, by what the discarded directions could say.
Canonical canonical_kept(const Lapack& lapack, const TruncatedView& x, const TruncatedView& y, Matrix kept);

// `found` is of these two views.
Comparison compare(const Lapack& lapack, const TruncatedView& x, const TruncatedView& y, const Canonical& found, MeanOver mean_over);

// correlations = singular values of Lx^-1/2 (Vx' Sxy Vy) Ly^-1/2 (Bjorck & Golub 1973 in moment form), the kept covariance
// in parentheses.
Variates canonical_variates(const Lapack& lapack, const TruncatedView& x, const TruncatedView& y, Matrix kept);

// Covariances of the neurons of a view (rows, in their own units) with its m variates.
Matrix loadings(const Lapack& lapack, const TruncatedView& view, const Matrix& coordinates);

}  // namespace streamcca
