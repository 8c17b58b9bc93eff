// What rounding may have done to second moments, by the model and by what is seen of it.
#pragma once
#include <cstddef>
#include <vector>

namespace streamcca {

// Independent errors of standard deviation relative * sqrt(raw_i raw_j) in entry (i, j) (docs/numerics.md).
struct Uncertainty {
  double relative = 0;
  double rows = 0;          // unit roundoff of the finest rows: what the data themselves resolve
  std::vector<double> raw;  // uncentered second moments, raised where more was observed
};

// What is known of moments about a shift, before the mean is taken out.
struct SeenMoments {
  const double* diagonal = nullptr;  // as the products gave it, `stride` apart
  std::size_t stride = 1;
  const double* squares = nullptr;  // the same sums, in float64
  std::size_t width = 0;
  double variance = 0;       // of the relative error, by the model
  double divisor = 1;        // what the moments are divided by
  double rows = 0;           // their number
  double smallest_step = 0;  // of the products' type
  double row_unit = 0;       // unit roundoff of the finest rows
};
Uncertainty observe_rounding(const SeenMoments& seen);

}  // namespace streamcca
