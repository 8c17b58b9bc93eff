#include "core/uncertainty.h"

#include <algorithm>
#include <cmath>

#include "core/units.h"

namespace streamcca {

// The model assumes that roundings are independent. Rows that repeat, few distinct values and heavy tails
// break that, so the error of the diagonal is measured against the squares summed in float64, and what was
// observed counts where it is more: its root mean square for all neurons, its size for the neuron itself.
Uncertainty observe_rounding(const SeenMoments& seen) {
  std::vector<double> observed(seen.width, 0.0);
  double total = 0, live = 0;
  for (std::size_t i = 0; i < seen.width; ++i) {
    if (!(seen.squares[i] > 0)) continue;
    observed[i] = std::fabs(seen.diagonal[i * seen.stride] - seen.squares[i]) / seen.squares[i];
    total += observed[i] * observed[i];
    ++live;
  }
  const double model = seen.variance + 4 * kUnit64 * kUnit64;
  Uncertainty result;
  result.relative = std::sqrt(std::max(model, live > 0 ? total / live : 0.0));
  result.rows = seen.row_unit;
  // Products below the smallest normal number lose digits that no relative error speaks of.
  const double underflow = seen.smallest_step * seen.rows / seen.divisor / result.relative;
  for (std::size_t i = 0; i < seen.width; ++i) {
    result.raw.push_back(std::max(seen.squares[i] / seen.divisor * std::max(1.0, observed[i] / result.relative), underflow));
  }
  return result;
}

}  // namespace streamcca
