#include "cpu/row_filter.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <sstream>

#include "core/error.h"
#include "cpu/threads.h"

namespace streamcca {
namespace {

// A block sums 256 products, so values up to 5e17 (shifted: 1e18) stay below the float32 maximum 3.4e38;
// in float64, 1e151 leaves room for 1e6 rows.
constexpr double kLargest[2] = {5e17, 1e151};
constexpr std::size_t kParallelElements = 1 << 18;

template <class Bits, class Value>
Bits bits_of(Value value) {
  Bits bits;
  static_assert(sizeof bits == sizeof value);
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Largest acceptable magnitude as a bit pattern of the source type.
std::uint64_t limit_bits(DType dtype, Products products, double largest_root) {
  const double limit = kLargest[products == Products::f64] / std::max(1.0, largest_root);
  const float narrow = static_cast<float>(std::min(limit, 3.4028234663852886e38));
  switch (dtype) {
    case DType::f16: return limit < 65504 ? 0 : 0x7bff;  // a limit this small comes from absurd weights
    case DType::bf16: return bits_of<std::uint32_t>(narrow) >> 16;
    case DType::f32: return bits_of<std::uint32_t>(narrow);
    case DType::f64: return bits_of<std::uint64_t>(limit);
  }
  return 0;
}

std::uint64_t largest_in(const Rows& rows, Run run, const KernelTable& kernels, int threads) {
  const auto kernel = kernels.largest_magnitude[static_cast<std::size_t>(rows.dtype)];
  const int team = run.count * rows.cols < kParallelElements ? 1 : thread_count(threads);
  const std::size_t share = run.count / static_cast<std::size_t>(team) + 1;
  std::uint64_t largest = 0;
#pragma omp parallel for schedule(static) num_threads(team) reduction(max : largest) if (team > 1)
  for (std::ptrdiff_t t = 0; t < team; ++t) {
    const std::size_t begin = std::min(run.count, static_cast<std::size_t>(t) * share);
    const std::size_t end = std::min(run.count, begin + share);
    const PackSource source{rows.row(run.first + begin), rows.row_stride, rows.col_stride, end - begin, rows.cols};
    largest = std::max(largest, kernel(&source));
  }
  return largest;
}

std::string where(const FilterContext& context, std::size_t view, std::size_t row) {
  std::ostringstream text;
  text << "view '" << context.views[view].name << "', row " << row << " of the batch (row " << context.rows_before + row << " in all)";
  return text.str();
}

[[noreturn]] void refuse_value(const Rows& rows, std::size_t view, std::size_t row, std::size_t column, const FilterContext& context) {
  const double value = element_value(rows, row, column);
  std::ostringstream text;
  text << where(context, view, row) << ", column " << column << ": value is " << value << ", expected ";
  if (std::isfinite(value)) {
    const bool narrow = context.products == Products::f32;
    text << "a magnitude below " << kLargest[!narrow] << " so that its square fits "
         << (narrow ? "float32; use precision='float64' or rescale the view" : "float64; rescale the view");
    throw Error(ErrorKind::value, text.str());
  }
  text << "a finite number; mend the rows, or pass nonfinite='skip' to leave such rows out or nonfinite='propagate' to let them through";
  throw Error(ErrorKind::nonfinite, text.str());
}

// Whether row `row` of one view must be left out; throws where the policy says so.
bool is_bad_row(const Rows& rows, std::size_t view, std::size_t row, std::uint64_t limit, const FilterContext& context) {
  if (largest_in(rows, {row, 1}, context.kernels, 1) <= limit) return false;
  for (std::size_t column = 0; column < rows.cols; ++column) {
    const Rows cell{rows.element(row, column), 1, 1, rows.row_stride, rows.col_stride, rows.dtype};
    if (largest_in(cell, {0, 1}, context.kernels, 1) <= limit) continue;
    if (context.nonfinite == NonFinite::raise || std::isfinite(element_value(rows, row, column))) {
      refuse_value(rows, view, row, column, context);
    }
  }
  return true;
}

void check_weight(double weight, std::size_t row) {
  if (std::isfinite(weight) && weight >= 0) return;
  std::ostringstream text;
  text << "weights, row " << row << " of the batch: weight is " << weight << ", expected a finite number >= 0";
  throw Error(ErrorKind::value, text.str());
}

std::vector<Run> runs_of(const std::vector<bool>& keep) {
  std::vector<Run> runs;
  for (std::size_t i = 0; i < keep.size(); ++i) {
    if (!keep[i]) continue;
    if (!runs.empty() && runs.back().first + runs.back().count == i) {
      ++runs.back().count;
    } else {
      runs.push_back({i, 1});
    }
  }
  return runs;
}

}  // namespace

Selection select_rows(const std::vector<Rows>& rows, const double* weights, const FilterContext& context) {
  const std::size_t count = rows.front().rows;
  Selection result;
  std::vector<bool> keep;
  double largest_weight = 1;
  if (weights) {
    keep.resize(count);
    for (std::size_t i = 0; i < count; ++i) {
      check_weight(weights[i], i);
      keep[i] = weights[i] > 0;
      largest_weight = std::max(largest_weight, weights[i]);
    }
    result.runs = runs_of(keep);
  } else if (count) {
    result.runs.push_back({0, count});
  }
  if (context.nonfinite == NonFinite::propagate) return result;

  // One fast pass; rows are looked at singly only when something is wrong.
  bool any_bad = false;
  std::vector<std::uint64_t> limits;
  for (const Rows& view_rows : rows) {
    limits.push_back(limit_bits(view_rows.dtype, context.products, std::sqrt(largest_weight)));
    for (const Run& run : result.runs) {
      any_bad = any_bad || largest_in(view_rows, run, context.kernels, context.threads) > limits.back();
    }
  }
  if (!any_bad) return result;

  if (keep.empty()) keep.assign(count, true);
  for (std::size_t i = 0; i < count; ++i) {
    bool bad = false;
    for (std::size_t view = 0; view < rows.size() && keep[i]; ++view) {
      bad = is_bad_row(rows[view], view, i, limits[view], context) || bad;
    }
    if (bad) {
      keep[i] = false;
      ++result.skipped;
    }
  }
  result.runs = runs_of(keep);
  return result;
}

}  // namespace streamcca
