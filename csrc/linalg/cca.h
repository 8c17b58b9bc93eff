// Canonical correlation analysis of two truncated views.
#pragma once
#include <vector>

#include "linalg/lapack.h"
#include "linalg/truncate.h"

namespace streamcca {

// Canonical variates in working coordinates (see TruncatedView): (x / scale_x) * a has unit variance.
struct Cca {
  std::vector<double> correlations;  // m = min(kx, ky), descending, in [0, 1]
  Matrix x_coordinates;              // kx x m: a = x.vectors * x_coordinates
  Matrix y_coordinates;              // ky x m
  Matrix x_weights;                  // dx x m, a
  Matrix y_weights;                  // dy x m, b
};

// correlations = singular values of Lx^-1/2 Vx' Sxy Vy Ly^-1/2 (Bjorck & Golub 1973 in moment form).
// `cross` is the dx x dy cross covariance in working coordinates.
Cca correlate(const Lapack& lapack, const TruncatedView& x, const TruncatedView& y, const Matrix& cross);

// Projection weights of PWCCA (Morcos, Raghu & Bengio 2018): alpha_i = sum_j |cov(variate_i, neuron_j)|, over
// the neurons of one view in their original units; `coordinates` are that view's.
std::vector<double> projection_weights(const Lapack& lapack, const TruncatedView& view, const Matrix& coordinates);

}  // namespace streamcca
