// Which rows of a batch take part: drops rows of weight zero, and finds values that are not finite or too
// large to be squared in the product type, before anything is accumulated.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/rows.h"
#include "core/schedule.h"
#include "cpu/moment_store.h"

namespace streamcca {

enum class NonFinite { raise, skip, propagate };

struct Selection {
  std::vector<Run> runs;
  std::uint64_t skipped = 0;  // rows left out because of a value that is not finite
};

struct FilterContext {
  const std::vector<View>& views;
  const KernelTable& kernels;
  Products products;
  NonFinite nonfinite;
  std::vector<double> shifts;  // largest magnitude of each view's shift; empty if not fixed yet
  std::uint64_t rows_before;   // for messages: rows counted before this batch
  double weight_before;        // of the rows counted before this batch
  double largest_weight;       // of this batch
  int threads;
};

// The largest magnitudes that rows of a batch may have: one fast look at them, which threads can share out.
class MagnitudeCheck {
 public:
  // Keeps references to both.
  MagnitudeCheck(const std::vector<Rows>& rows, const FilterContext& context);
  // Whether all values of a piece are below. Nothing is looked at under `propagate`.
  bool passes(Run piece, int threads) const;
  double limit(std::size_t view) const { return limits_[view]; }

 private:
  const std::vector<Rows>& rows_;
  const FilterContext& context_;
  std::vector<double> limits_;         // by view
  std::vector<std::uint64_t> bounds_;  // the same as bit patterns
};

// Of a whole batch, at least 1; throws Error (value) for a bad weight.
double check_weights(const double* weights, std::size_t count);

// Which rows of a piece of the batch take part. Throws Error (value: too large a value; nonfinite: NaN or infinity under `raise`).
Selection select_rows(const std::vector<Rows>& rows, Run piece, const double* weights, const FilterContext& context);

}  // namespace streamcca
