#include "cpu/row_filter.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <sstream>

#include "core/error.h"
#include "cpu/threads.h"

namespace streamcca {
namespace {

// Largest packed value in float32, root of the weight included: a block sums 256 squares, and 256 (1e18)^2 stays
// below the maximum 3.4e38. In float64 the state sums all rows, and must stay below 1.8e308.
constexpr double kLargest32 = 1e18;
constexpr double kLargestSum64 = 1e306;
constexpr double kLargestWeight = 1e12;
constexpr std::size_t kParallelElements = 1 << 18;

template <class Bits, class Value>
Bits bits_of(Value value) {
  Bits bits;
  static_assert(sizeof bits == sizeof value);
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// The largest finite value below `limit`, as a bit pattern of the source type without its sign.
std::uint64_t limit_bits(DType dtype, double limit) {
  const float narrow = static_cast<float>(std::min(limit, 3.4028234663852886e38));
  switch (dtype) {
    case DType::f16: return 0x7bff;  // 65504: never too large to be squared
    case DType::bf16: return bits_of<std::uint32_t>(narrow) >> 16;
    case DType::f32: return bits_of<std::uint32_t>(narrow);
    case DType::f64: return bits_of<std::uint64_t>(limit);
  }
  return 0;
}

// Threads share out the columns, as in packing, which then finds them in its cache.
std::uint64_t largest_in(const Rows& rows, Run run, const KernelTable& kernels, int threads) {
  const auto kernel = kernels.largest_magnitude[static_cast<std::size_t>(rows.dtype)];
  const int team = run.count * rows.cols < kParallelElements ? 1 : thread_count(threads);
  std::uint64_t largest = 0;
#pragma omp parallel for schedule(static) num_threads(team) reduction(max : largest) if (team > 1)
  for (int t = 0; t < team; ++t) {
    const auto part = [&](int i) { return rows.cols * static_cast<std::size_t>(i) / static_cast<std::size_t>(team); };
    for (std::size_t first = run.first, end = run.first + run.count; first < end;) {
      const std::size_t count = rows.run_from(first, end - first);
      const PackSource source{rows.element(first, part(t)), rows.row_stride, rows.col_stride, count, part(t + 1) - part(t)};
      largest = std::max(largest, kernel(&source));
      first += count;
    }
  }
  return largest;
}

[[noreturn]] void refuse_value(double value, double limit, std::size_t view, std::size_t row, std::size_t column,
                               const FilterContext& context) {
  std::ostringstream text;
  text << "view '" << context.views[view].name << "', row " << row << " of the batch (after " << context.rows_before
       << " rows counted before), column " << column << ": value is ";
  if (!std::isfinite(value)) {
    text << (std::isnan(value) ? "nan"
             : value > 0       ? "inf"
                               : "-inf")
         << ", expected a finite number; mend the rows, or pass nonfinite='skip' to leave such rows out or nonfinite='propagate' to let "
            "them through";
    throw Error(ErrorKind::nonfinite, text.str());
  }
  const bool narrow = context.products == Products::f32;
  text << value << ", expected a magnitude below " << limit << " (with these weights) so that its square fits "
       << (narrow ? "float32; use precision='float64' or rescale the view" : "float64; rescale the view");
  throw Error(ErrorKind::value, text.str());
}

// Whether a row must be left out; throws where the policy says so.
bool is_bad_row(const Rows& rows, std::size_t view, std::size_t row, double limit, const FilterContext& context) {
  bool bad = false;
  for (std::size_t column = 0; column < rows.cols; ++column) {
    const double value = element_value(rows, row, column);
    if (std::fabs(value) <= limit) continue;
    if (context.nonfinite == NonFinite::raise || std::isfinite(value)) refuse_value(value, limit, view, row, column, context);
    bad = true;
  }
  return bad;
}

void check_weight(double weight, std::size_t row) {
  if (weight >= 0 && weight <= kLargestWeight) return;
  std::ostringstream text;
  text << "weights, row " << row << " of the batch: weight is " << weight << ", expected a number from 0 to " << kLargestWeight;
  throw Error(ErrorKind::value, text.str());
}

std::vector<Run> runs_of(const std::vector<bool>& keep, std::size_t first) {
  std::vector<Run> runs;
  for (std::size_t i = 0; i < keep.size(); ++i) {
    if (!keep[i]) continue;
    if (!runs.empty() && runs.back().first + runs.back().count == first + i) {
      ++runs.back().count;
    } else {
      runs.push_back({first + i, 1});
    }
  }
  return runs;
}

}  // namespace

double check_weights(const double* weights, std::size_t count) {
  double largest = 1;
  for (std::size_t i = 0; weights && i < count; ++i) {
    check_weight(weights[i], i);
    largest = std::max(largest, weights[i]);
  }
  return largest;
}

// What is packed is x - shift, and as long as the shift is not fixed it may become as large as any x.
MagnitudeCheck::MagnitudeCheck(const std::vector<Rows>& rows, const FilterContext& context) : rows_(rows), context_(context) {
  const double total_weight = context.weight_before + static_cast<double>(rows.front().rows) * context.largest_weight;
  const double packed =
      context.products == Products::f32 ? kLargest32 / std::sqrt(context.largest_weight) : std::sqrt(kLargestSum64 / total_weight);
  for (std::size_t view = 0; view < rows.size(); ++view) {
    limits_.push_back(context.shifts.empty() ? packed / 2 : std::max(0.0, packed - context.shifts[view]));
    bounds_.push_back(limit_bits(rows[view].dtype, limits_.back()));
  }
}

bool MagnitudeCheck::passes(Run piece, int threads) const {
  if (context_.nonfinite == NonFinite::propagate) return true;
  for (std::size_t view = 0; view < rows_.size(); ++view) {
    if (largest_in(rows_[view], piece, context_.kernels, threads) > bounds_[view]) return false;
  }
  return true;
}

Selection select_rows(const std::vector<Rows>& rows, Run piece, const double* weights, const FilterContext& context) {
  Selection result;
  std::vector<bool> keep;
  if (weights) {
    for (std::size_t i = 0; i < piece.count; ++i) keep.push_back(weights[piece.first + i] > 0);
    result.runs = runs_of(keep, piece.first);
  } else if (piece.count) {
    result.runs.push_back(piece);
  }
  if (context.nonfinite == NonFinite::propagate) return result;

  // Values are looked at singly only when something is wrong.
  const MagnitudeCheck check(rows, context);
  const auto passes = [&](const Run& run) { return check.passes(run, context.threads); };
  if (std::all_of(result.runs.begin(), result.runs.end(), passes)) return result;

  if (keep.empty()) keep.assign(piece.count, true);
  for (std::size_t i = 0; i < piece.count; ++i) {
    bool bad = false;
    for (std::size_t view = 0; view < rows.size() && keep[i]; ++view) {
      bad = is_bad_row(rows[view], view, piece.first + i, check.limit(view), context) || bad;
    }
    if (bad) {
      keep[i] = false;
      ++result.skipped;
    }
  }
  result.runs = runs_of(keep, piece.first);
  return result;
}

}  // namespace streamcca
