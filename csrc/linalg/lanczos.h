// Leading eigenpairs of a large symmetric matrix without decomposing all of it: block Lanczos with full
// reorthogonalization (Golub & Underwood 1977; Saad, Numerical Methods for Large Eigenvalue Problems, ch. 6), and a
// certificate that none was missed.
#pragma once
#include <optional>
#include <vector>

#include "linalg/symmetric.h"

namespace streamcca {

struct LeadingPairs {
  std::vector<double> eigenvalues;  // largest first: all that were asked for and at least one more
  Matrix vectors;                   // d x (eigenvalues.size() - 1)
};

// What has to be found: the fewest leading eigenvalues that sum to `sum` (of a positive semidefinite matrix), or, if
// `count` is not 0, that many.
struct Wanted {
  double sum = 0;
  std::size_t count = 0;
};

// At least so many are needed.
double fewest_possible(const SymmetricMatrix& a, const Wanted& wanted);

// Nothing if so many are wanted that decomposing the whole matrix is cheaper, or if the certificate fails; the
// attempt then costs a few percent of that decomposition. The certificate: with the pairs found taken out of the
// matrix, (s I - rest) has a Cholesky factor, so no other eigenvalue exceeds s, which is put between the last
// wanted eigenvalue and the next. It was never seen to fail: rounding brings in what the start vectors lack.
std::optional<LeadingPairs> leading_pairs(const Lapack& lapack, const SymmetricMatrix& a, const Wanted& wanted);

}  // namespace streamcca
