// How far rounding may have moved the correlations: first-order perturbation of the covariances by
// independent errors of known size, with a safety factor (derivation and calibration: docs/numerics.md).
#pragma once
#include <vector>

#include "linalg/cca.h"

namespace streamcca {

struct ErrorBound {
  double mean = 0;                   // of sum_i shares_i rho_i, for fixed shares
  double shares = 0;                 // what shares that move with the covariances add
  std::vector<double> correlations;  // of each rho_i
};

// `shares` are fixed weights of the mean, summing to 1. `cross` in working coordinates, or null where only the kept
// directions were paired: then what the discarded ones have to say is bounded, not computed.
ErrorBound error_bound(const Lapack& lapack, const TruncatedView& x, const TruncatedView& y, const CrossMatrix* cross, const Variates& v,
                       const std::vector<double>& shares);

// The same where the shares are PWCCA's and move with the covariances: they are sums of absolute `loadings`
// of one side's neurons, and when two variates mix, so do their loadings.
ErrorBound projection_error_bound(const Lapack& lapack, const TruncatedView& x, const TruncatedView& y, const CrossMatrix* cross,
                                  const Variates& v, const std::vector<double>& shares, const Matrix& loadings, bool of_x);

}  // namespace streamcca
