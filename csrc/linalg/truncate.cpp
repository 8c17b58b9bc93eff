#include "linalg/truncate.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "core/error.h"

namespace streamcca {
namespace {

constexpr double kUnit = 1.1102230246251565e-16;  // 2^-53
constexpr double kSafety = 3;                     // standard deviations, for decisions
// LAPACK's symmetric eigensolvers: observed backward errors stay below this many unit roundoffs of the
// largest eigenvalue times d^(1/2).
constexpr double kEigenBackward = 4;

double sum(const std::vector<double>& v) { return std::accumulate(v.begin(), v.end(), 0.0); }

void add_ridge(Matrix* c, double ridge) {
  double trace = 0;
  for (std::size_t i = 0; i < c->rows; ++i) trace += c->column(i)[i];
  const double amount = ridge * trace / static_cast<double>(c->rows);
  for (std::size_t i = 0; i < c->rows; ++i) c->column(i)[i] += amount;
}

// To unit diagonal; neurons whose variance is within rounding of zero are left out (scale 0).
std::vector<double> scale_to_unit_diagonal(Matrix* c, Uncertainty* uncertainty) {
  const std::size_t d = c->rows;
  std::vector<double> scale(d, 0.0);
  for (std::size_t i = 0; i < d; ++i) {
    const double variance = c->column(i)[i];
    const double noise = kSafety * std::max(uncertainty->relative, kUnit) * uncertainty->raw[i];
    if (variance > noise) scale[i] = std::sqrt(variance);
  }
  for (std::size_t j = 0; j < d; ++j) {
    for (std::size_t i = 0; i < d; ++i) {
      double& entry = c->column(j)[i];
      entry = scale[i] > 0 && scale[j] > 0 ? entry / (scale[i] * scale[j]) : 0;
    }
    uncertainty->raw[j] = scale[j] > 0 ? uncertainty->raw[j] / (scale[j] * scale[j]) : 0;
  }
  return scale;
}

// Spectral norm of a symmetric random matrix with standard deviations relative * sqrt(raw_i raw_j).
double noise_norm(const Uncertainty& u) {
  if (u.raw.empty()) return 0;
  return 2 * u.relative * std::sqrt(*std::max_element(u.raw.begin(), u.raw.end()) * sum(u.raw));  // raw is of order 1 here
}

// By one power of two, exactly, to a mean variance of about 1: so that squares and quotients of eigenvalues
// further on can neither overflow nor vanish, whatever the unit of the rows.
std::vector<double> scale_to_order_one(Matrix* c, Uncertainty* uncertainty, double trace) {
  const double unit = std::exp2(std::nearbyint(0.5 * std::log2(trace / static_cast<double>(c->rows))));
  for (double& entry : c->values) entry = entry / unit / unit;
  for (double& raw : uncertainty->raw) raw = raw / unit / unit;
  return std::vector<double>(c->rows, unit);
}

struct Cut {
  std::size_t rank;
  double share, margin;
};

// Smallest k whose leading `parts` (descending, not negative) reach value * total.
Cut cut_by_share(const std::vector<double>& parts, double total, double value) {
  double kept = 0;
  for (std::size_t k = 0; k < parts.size(); ++k) {
    const double before = kept / total;
    kept += parts[k];
    // Inclusive threshold: a share that equals it up to the rounding of this sum has reached it.
    const bool last = k + 1 == parts.size();
    if (kept >= (value - 16 * kUnit) * total || last) {
      const double share = kept / total;
      const double above = last ? 1.0 : std::fabs(share - value);
      return {k + 1, share, std::min(above, std::fabs(value - before))};
    }
  }
  return {0, 0, 0};
}

Cut choose(const Rule& rule, const std::vector<double>& descending, std::size_t numerical_rank, double trace) {
  std::vector<double> parts(descending.begin(), descending.begin() + static_cast<std::ptrdiff_t>(numerical_rank));
  switch (rule.kind) {
    case RuleKind::variance: return cut_by_share(parts, trace, rule.value);
    case RuleKind::nuclear: {
      for (double& part : parts) part = std::sqrt(part);
      return cut_by_share(parts, sum(parts), rule.value);
    }
    case RuleKind::rank: {
      const auto rank = static_cast<std::size_t>(rule.value);
      if (rank > numerical_rank) {
        throw Error(ErrorKind::value, "rank " + std::to_string(rank) + " was asked for, but the numerical rank is " +
                                          std::to_string(numerical_rank) + "; ask for at most that");
      }
      return {rank, std::accumulate(parts.begin(), parts.begin() + static_cast<std::ptrdiff_t>(rank), 0.0) / trace, 1};
    }
    case RuleKind::full: return {numerical_rank, 1, 1};
  }
  return {0, 0, 0};
}

// Standard deviation of the share that the rule looks at, from the uncertainty of the kept trace.
double share_uncertainty(const TruncatedView& view, RuleKind kind) {
  const double kept =
      view.uncertainty.relative * sum(view.uncertainty.raw) / view.trace + kUnit * std::sqrt(static_cast<double>(view.width));
  // d sqrt(x) = dx / (2 sqrt(x)): the smallest kept value moves most.
  if (kind != RuleKind::nuclear) return kept;
  const double smallest = view.eigenvalues.empty() ? view.trace : view.eigenvalues.back();
  return kept * std::sqrt(view.trace / std::max(smallest, view.tolerance));
}

}  // namespace

TruncatedView truncate(const Lapack& lapack, Matrix covariance, Uncertainty uncertainty, Rule rule, double ridge) {
  TruncatedView view;
  view.width = covariance.rows;
  const double raw_total = sum(uncertainty.raw);
  double variance = 0;
  for (std::size_t i = 0; i < view.width; ++i) variance += covariance.column(i)[i];
  if (!(variance > kSafety * std::max(uncertainty.relative, kUnit) * raw_total)) {
    throw Error(ErrorKind::value, "every neuron is constant over the rows, so no direction can be kept; leave the view out");
  }
  if (ridge > 0) add_ridge(&covariance, ridge);
  view.uncertainty = std::move(uncertainty);
  if (rule.kind == RuleKind::full) {
    view.scale = scale_to_unit_diagonal(&covariance, &view.uncertainty);
  } else {
    view.scale = scale_to_order_one(&covariance, &view.uncertainty, variance);
    view.unit = view.scale.front();
  }

  const Tridiagonal t = tridiagonalize(lapack, covariance);
  const std::vector<double> descending(t.eigenvalues.rbegin(), t.eigenvalues.rend());
  for (std::size_t i = 0; i < view.width; ++i) view.trace += covariance.column(i)[i];
  view.backward_error = kEigenBackward * kUnit * std::sqrt(static_cast<double>(view.width)) * descending.front();
  view.tolerance = kSafety * noise_norm(view.uncertainty) + view.backward_error;
  view.numerical_rank =
      static_cast<std::size_t>(std::count_if(descending.begin(), descending.end(), [&](double value) { return value > view.tolerance; }));

  if (view.numerical_rank == 0) throw Error(ErrorKind::numeric, "no direction stands above rounding; accumulate with precision='float64'");
  const Cut cut = choose(rule, descending, view.numerical_rank, view.trace);
  view.rank = cut.rank;
  view.share = cut.share;
  view.margin = cut.margin;
  view.vectors = leading_eigenvectors(lapack, t, covariance, view.rank, &view.eigenvalues);
  if (view.rank < view.width) view.next_eigenvalue = std::max(0.0, descending[view.rank]);
  if (rule.kind == RuleKind::variance || rule.kind == RuleKind::nuclear) {
    view.cut_resolved = view.margin > kSafety * share_uncertainty(view, rule.kind);
  }
  return view;
}

}  // namespace streamcca
