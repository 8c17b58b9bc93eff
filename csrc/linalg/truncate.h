// Truncation of one view: the leading principal directions of its covariance.
#pragma once
#include <cstddef>
#include <vector>

#include "linalg/symmetric.h"

namespace streamcca {

// variance: smallest k with sum_{i<=k} s_i^2 >= value * sum s_i^2   (SVCCA paper, main text)
// nuclear:  smallest k with sum_{i<=k} s_i   >= value * sum s_i     (SVCCA paper, appendix A)
// rank:     k = value
// full:     k = numerical rank, of the covariance scaled to unit diagonal (untruncated CCA)
// A share of 1 keeps everything down to the numerical rank.
enum class RuleKind { variance, nuclear, rank, full };

struct Rule {
  RuleKind kind = RuleKind::full;
  double value = 0;
};

// What rounding may have done to a covariance C: independent errors of standard deviation
// relative * sqrt(raw_i raw_j) in C_ij (docs/numerics.md).
struct CovarianceError {
  double relative = 0;
  double rows = 0;          // unit roundoff of the rows
  std::vector<double> raw;  // d
};

// A truncated view in *working coordinates*: neurons divided by `scale`. That is one power of two, `unit`, for
// all neurons, or for the rule `full` the deviation of each (and `unit` 1). All numbers here are in working
// coordinates; eigenvalues and trace times unit^2 are those of the covariance.
struct TruncatedView {
  std::size_t width = 0;
  std::size_t live = 0;             // neurons that vary
  std::size_t rank = 0;             // k, directions kept
  std::size_t numerical_rank = 0;   // eigenvalues above `tolerance`, of those that were computed
  std::size_t lowest_rank = 0;      // the ranks that rounding leaves possible; directions below the tolerance
  std::size_t highest_rank = 0;     // count, unless the rows themselves do not resolve them
  Matrix vectors;                   // d x k, orthonormal
  std::vector<double> eigenvalues;  // k, descending
  std::vector<double> scale;        // d; 0 marks a constant neuron, left out
  double unit = 1;
  double next_eigenvalue = 0;  // the first one not kept, 0 if none
  double trace = 0;            // sum of all eigenvalues
  double share = 1;            // kept share of the total that the rule looks at
  double margin = 1;           // distance of the rule's threshold to the nearest share that would change k
  double tolerance = 0;        // eigenvalues below are taken for rounding
  double backward_error = 0;   // spectral norm that LAPACK's own rounding may have
  CovarianceError error;
};

// `covariance` is d x d, and used up; `diagonal` is its own. `ridge`, in units of the mean variance of the neurons that vary, is added to
// their variances first. Throws Error if the view is constant or a rank above the numerical one is asked for.
TruncatedView truncate(const Lapack& lapack, SymmetricMatrix* covariance, std::vector<double> diagonal, CovarianceError error, Rule rule,
                       double ridge);

}  // namespace streamcca
