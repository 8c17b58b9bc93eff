#include "linalg/truncate.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "core/error.h"
#include "core/units.h"
#include "linalg/lanczos.h"

namespace streamcca {
namespace {

constexpr double kSafety = 3;  // standard deviations, for decisions
// Norm that LAPACK's eigensolvers may have added to the matrix, in unit roundoffs of the largest eigenvalue
// times d^(1/2). Residuals were seen up to 4.1 (dstemr, few vectors) and 3.2 (divide and conquer).
constexpr double kEigenBackward = 6;
constexpr double kShareRounding = 16 * kUnit64;

double sum(const std::vector<double>& v) { return std::accumulate(v.begin(), v.end(), 0.0); }

// Variances that stand above their own rounding; the others become zero.
std::vector<bool> live_neurons(std::vector<double>* diagonal, CovarianceError* error) {
  std::vector<bool> live(diagonal->size());
  for (std::size_t i = 0; i < live.size(); ++i) {
    live[i] = (*diagonal)[i] > kSafety * std::max(error->relative, kUnit64) * error->raw[i];
    if (!live[i]) (*diagonal)[i] = error->raw[i] = 0;
  }
  return live;
}

// To unit diagonal, for CCA: neurons may have any units.
std::vector<double> unit_diagonal_scale(const std::vector<double>& diagonal, const std::vector<bool>& live) {
  std::vector<double> scale(diagonal.size(), 0.0);
  for (std::size_t i = 0; i < scale.size(); ++i) scale[i] = live[i] ? std::sqrt(diagonal[i]) : 0;
  return scale;
}

// One power of two that brings the mean variance to about 1, exactly: squares and quotients of eigenvalues
// further on can then neither overflow nor vanish, whatever the unit of the rows.
double order_one_scale(const std::vector<double>& diagonal) {
  return std::exp2(std::nearbyint(0.5 * std::log2(sum(diagonal) / static_cast<double>(diagonal.size()))));
}

void divide(std::vector<double>* squares, const std::vector<double>& scale) {
  for (std::size_t i = 0; i < scale.size(); ++i) (*squares)[i] = quotient((*squares)[i], scale[i], scale[i]);
}

// Spectral norm of a symmetric random matrix with standard deviations relative * sqrt(raw_i raw_j), raw of order 1.
double noise_norm(const CovarianceError& e) {
  return 2 * e.relative * std::sqrt(*std::max_element(e.raw.begin(), e.raw.end()) * sum(e.raw));
}

// Directions whose deviation is below this many roundings of the rows are not data.
constexpr double kRowResolution = 100;

// Most directions that the rows could hold, whether or not their covariance shows them.
std::size_t resolvable(const TruncatedView& view) {
  const double largest = *std::max_element(view.error.raw.begin(), view.error.raw.end());
  const bool below_rows = std::sqrt(view.tolerance) <= kRowResolution * view.error.rows * std::sqrt(largest);
  return below_rows ? view.numerical_rank : view.live;
}

// First k at which the leading parts reach value * total, or the number of parts if they do not.
std::size_t first_reaching(const std::vector<double>& parts, double total, double value) {
  double kept = 0;
  for (std::size_t k = 0; k < parts.size(); ++k) {
    kept += parts[k];
    if (kept >= value * total) return k + 1;
  }
  return parts.size();
}

bool reaches(const std::vector<double>& parts, double total, double value) { return sum(parts) >= value * total; }

// Standard deviation of the share that the rule looks at.
double share_error(const TruncatedView& view, const std::vector<double>& parts, double total, RuleKind kind) {
  const double trace_error = view.error.relative * sum(view.error.raw) + kUnit64 * std::sqrt(static_cast<double>(view.width)) * view.trace;
  if (kind == RuleKind::variance) return trace_error / total;
  // d sqrt(x) = dx / (2 sqrt(x)), with the error of each eigenvalue at most that of the norm.
  double error = 0;
  for (double part : parts) error += std::min(part, view.tolerance / kSafety / (2 * part));
  return error / total;
}

void cut_by_share(TruncatedView* view, const std::vector<double>& descending, const Rule& rule) {
  std::vector<double> parts(descending.begin(), descending.begin() + static_cast<std::ptrdiff_t>(view->numerical_rank));
  double total = view->trace, hidden = 0;
  if (rule.kind == RuleKind::nuclear) {
    for (double& part : parts) part = std::sqrt(part);
    total = sum(parts);
    // Directions below rounding are not in the sum, but each could add up to this much.
    hidden = static_cast<double>(view->live - view->numerical_rank) * std::sqrt(view->tolerance);
  }
  if (rule.value >= 1) {
    view->rank = view->lowest_rank = view->numerical_rank;
    view->highest_rank = resolvable(*view);
    view->share = std::min(1.0, sum(parts) / total);
    view->margin = 0;
    return;
  }
  // Inclusive threshold: a share that equals it up to the rounding of this sum has reached it.
  view->rank = first_reaching(parts, total, rule.value - kShareRounding);
  const double before = std::accumulate(parts.begin(), parts.begin() + static_cast<std::ptrdiff_t>(view->rank - 1), 0.0) / total;
  view->share = before + parts[view->rank - 1] / total;
  view->margin = view->share < rule.value ? 0 : std::min(view->share - rule.value, rule.value - before);
  const double error = kSafety * share_error(*view, parts, total, rule.kind);
  view->lowest_rank = std::min(view->rank, first_reaching(parts, total, rule.value - error));
  const double above = rule.value + error;
  view->highest_rank = reaches(parts, total + hidden, above) ? first_reaching(parts, total + hidden, above) : resolvable(*view);
}

void choose_rank(TruncatedView* view, const std::vector<double>& descending, const Rule& rule) {
  switch (rule.kind) {
    case RuleKind::variance:
    case RuleKind::nuclear: return cut_by_share(view, descending, rule);
    case RuleKind::rank:
      if (rule.value > static_cast<double>(view->numerical_rank)) {
        throw Error(ErrorKind::value, "rank " + std::to_string(static_cast<long long>(rule.value)) +
                                          " was asked for, but the numerical rank is " + std::to_string(view->numerical_rank) +
                                          "; ask for at most that");
      }
      view->rank = view->lowest_rank = view->highest_rank = static_cast<std::size_t>(rule.value);
      view->share = std::accumulate(descending.begin(), descending.begin() + static_cast<std::ptrdiff_t>(view->rank), 0.0) / view->trace;
      return;
    case RuleKind::full:
      view->rank = view->lowest_rank = view->numerical_rank;
      view->highest_rank = resolvable(*view);
      return;
  }
}

// What rounding hides, and how many of the eigenvalues stand above it.
void set_tolerance(TruncatedView* view, const std::vector<double>& descending) {
  view->backward_error = kEigenBackward * kUnit64 * std::sqrt(static_cast<double>(view->width)) * descending.front();
  view->tolerance = kSafety * noise_norm(view->error) + view->backward_error;
  const auto above = [view](double value) { return value > view->tolerance; };
  view->numerical_rank = static_cast<std::size_t>(std::count_if(descending.begin(), descending.end(), above));
}

void set_next_eigenvalue(TruncatedView* view, const std::vector<double>& descending) {
  if (view->rank < view->width) view->next_eigenvalue = std::max(0.0, descending[view->rank]);
}

// Cuts with the leading eigenpairs alone; false if the rule needs the whole spectrum or that is cheaper.
bool cut_leading(const Lapack& lapack, const SymmetricMatrix& covariance, const Rule& rule, TruncatedView* view) {
  Wanted wanted;
  if (rule.kind == RuleKind::variance) {
    // As far as the highest rank that rounding leaves possible, so that it is known, too.
    const double share = rule.value + kSafety * share_error(*view, {}, view->trace, rule.kind) + kShareRounding;
    if (share >= 1) return false;
    wanted.sum = share * view->trace;
  } else if (rule.kind == RuleKind::rank) {
    wanted.count = static_cast<std::size_t>(rule.value);
  } else {
    return false;
  }
  std::optional<LeadingPairs> pairs = leading_pairs(lapack, covariance, wanted);
  if (!pairs) return false;
  set_tolerance(view, pairs->eigenvalues);
  if (view->numerical_rank < pairs->vectors.cols) return false;
  choose_rank(view, pairs->eigenvalues, rule);
  view->vectors = columns_of(pairs->vectors, 0, view->rank);
  view->eigenvalues.assign(pairs->eigenvalues.begin(), pairs->eigenvalues.begin() + static_cast<std::ptrdiff_t>(view->rank));
  set_next_eigenvalue(view, pairs->eigenvalues);
  return true;
}

// A lower bound of the rank that the rule will choose, so that eigenvectors may come with the eigenvalues. The nuclear
// norm needs at least as many directions as the variance does.
std::size_t least_rank(const SymmetricMatrix& covariance, const Rule& rule, const TruncatedView& view) {
  if (rule.kind == RuleKind::full) return view.live;  // nearly always; if not, the answer is the same, only later
  if (rule.kind == RuleKind::rank) return static_cast<std::size_t>(rule.value);
  return static_cast<std::size_t>(fewest_possible(covariance, {rule.value * view.trace, 0}));
}

void cut_whole(SymmetricMatrix* covariance, const Rule& rule, TruncatedView* view) {
  const std::vector<double> descending = covariance->decompose(least_rank(*covariance, rule, *view));
  set_tolerance(view, descending);
  if (view->numerical_rank == 0) {
    throw Error(ErrorKind::numeric, "no direction stands above rounding; accumulate with precision='float64'");
  }
  choose_rank(view, descending, rule);
  view->vectors = covariance->leading(view->rank, &view->eigenvalues);
  set_next_eigenvalue(view, descending);
}

}  // namespace

TruncatedView truncate(const Lapack& lapack, SymmetricMatrix* covariance, std::vector<double> diagonal, CovarianceError error, Rule rule,
                       double ridge) {
  TruncatedView view;
  view.width = diagonal.size();
  view.error = std::move(error);
  const std::vector<bool> live = live_neurons(&diagonal, &view.error);
  view.live = static_cast<std::size_t>(std::count(live.begin(), live.end(), true));
  if (view.live == 0) {
    throw Error(
        ErrorKind::value,
        "every neuron is constant over the rows, or varies by less than its products can hold, so no direction can be kept; leave the "
        "view out, or rescale it and use precision='float64'");
  }
  const double amount = ridge * sum(diagonal) / static_cast<double>(view.live);
  for (std::size_t i = 0; i < view.width; ++i) diagonal[i] += live[i] ? amount : 0;
  if (rule.kind == RuleKind::full) {
    view.scale = unit_diagonal_scale(diagonal, live);
  } else {
    view.unit = order_one_scale(diagonal);
    view.scale.assign(view.width, view.unit);
  }
  covariance->prepare(live, amount, view.scale);
  divide(&diagonal, view.scale);
  divide(&view.error.raw, view.scale);
  view.trace = sum(diagonal);
  if (!cut_leading(lapack, *covariance, rule, &view)) cut_whole(covariance, rule, &view);
  return view;
}

}  // namespace streamcca
