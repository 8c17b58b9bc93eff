// How far rounding may have moved the correlations: first-order perturbation of the covariances by
// independent errors of known size, with a safety factor (derivation and calibration: docs/numerics.md).
#pragma once
#include <vector>

#include "linalg/cca.h"

namespace streamcca {

struct ErrorBound {
  double mean = 0;                   // of sum_i shares_i rho_i
  std::vector<double> correlations;  // of each rho_i
};

// `shares` are the weights of the mean (1/m each, or PWCCA's), summing to 1. `cross` as in correlate().
ErrorBound error_bound(const Lapack& lapack, const TruncatedView& x, const TruncatedView& y, const Matrix& cross, const Cca& cca,
                       const std::vector<double>& shares);

}  // namespace streamcca
