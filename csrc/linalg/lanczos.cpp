#include "linalg/lanczos.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>

#include "core/units.h"

namespace streamcca {
namespace {

constexpr std::size_t kBlock = 16;
// Below this width LAPACK's full decomposition is as fast.
constexpr std::size_t kSmallest = 512;
// More wanted pairs, or more basis vectors, than these parts of the width, and the full decomposition is cheaper.
constexpr std::size_t kMostPairs = 12;
constexpr std::size_t kMostBasis = 3;
// Blocks between two looks at the Ritz values.
constexpr std::size_t kBlocksPerLook = 4;

void subtract(Matrix* a, const Matrix& b) {
  for (std::size_t i = 0; i < a->values.size(); ++i) a->values[i] -= b.values[i];
}

// A basis that grows by blocks, and the projection of the matrix on it.
class Basis {
 public:
  Basis(const Lapack& lapack, const SymmetricMatrix& a)
      : lapack_(lapack), a_(a), vectors_(a.size(), 0), next_(pseudo_random(a.size(), kBlock)) {
    orthonormalize(lapack, &next_);
  }

  std::size_t size() const { return vectors_.cols; }

  void grow() {
    append(&vectors_, next_);
    Matrix image = a_.multiply(next_);
    Matrix coupling = multiply_transposed(lapack_, vectors_, image);
    extend_projection(coupling);
    // Twice is enough (Parlett): what is left of the image, orthogonal to everything before. Where nothing but
    // rounding is left, QR makes new directions of it, and a third time they are orthogonal, too.
    subtract(&image, multiply(lapack_, vectors_, coupling));
    subtract(&image, multiply(lapack_, vectors_, multiply_transposed(lapack_, vectors_, image)));
    last_ = orthonormalize(lapack_, &image);
    subtract(&image, multiply(lapack_, vectors_, multiply_transposed(lapack_, vectors_, image)));
    orthonormalize(lapack_, &image);
    next_ = std::move(image);
  }

  const Matrix& projection() const { return projection_; }

  // Norms of a v - value v for Ritz vectors v of the given coordinates: what the last block lets out of the basis.
  std::vector<double> residuals(const Matrix& coordinates) const {
    Matrix tail(kBlock, coordinates.cols);
    for (std::size_t j = 0; j < tail.cols; ++j) std::copy_n(coordinates.column(j) + size() - kBlock, kBlock, tail.column(j));
    const Matrix outside = multiply(lapack_, last_, tail);
    std::vector<double> norms;
    for (std::size_t j = 0; j < tail.cols; ++j) {
      norms.push_back(std::sqrt(std::inner_product(outside.column(j), outside.column(j) + kBlock, outside.column(j), 0.0)));
    }
    return norms;
  }

  Matrix expand(const Matrix& coordinates) const { return multiply(lapack_, vectors_, coordinates); }

 private:
  static Matrix pseudo_random(std::size_t rows, std::size_t cols) {
    Matrix z(rows, cols);
    std::uint64_t state = 0x2545f4914f6cdd1du;
    for (double& value : z.values) {
      state ^= state << 13, state ^= state >> 7, state ^= state << 17;
      value = static_cast<double>(state >> 11) * 0x1p-53 - 0.5;
    }
    return z;
  }

  static void append(Matrix* m, const Matrix& block) {
    m->values.insert(m->values.end(), block.values.begin(), block.values.end());
    m->cols += block.cols;
  }

  // `coupling`: the basis's inner products with the image of its last block.
  void extend_projection(const Matrix& coupling) {
    const std::size_t old = size() - kBlock;
    Matrix larger(size(), size());
    for (std::size_t j = 0; j < old; ++j) std::copy_n(projection_.column(j), old, larger.column(j));
    for (std::size_t j = 0; j < kBlock; ++j) {
      for (std::size_t i = 0; i < size(); ++i) larger.column(old + j)[i] = larger.column(i)[old + j] = coupling.column(j)[i];
    }
    projection_ = std::move(larger);
  }

  const Lapack& lapack_;
  const SymmetricMatrix& a_;
  Matrix vectors_;
  Matrix projection_;
  Matrix next_;
  Matrix last_;  // upper triangular factor: what the image of the last block has outside the basis
};

// How many leading values reach the wanted sum, 0 if all together do not.
std::size_t wanted_count(const std::vector<double>& values, const Wanted& wanted) {
  if (wanted.count) return wanted.count < values.size() ? wanted.count : 0;
  double sum = 0;
  for (std::size_t k = 0; k < values.size(); ++k) {
    sum += values[k];
    if (sum >= wanted.sum) return k + 1;
  }
  return 0;
}

// How many will be needed, judged by the Ritz values that have settled: the others are not larger than the last of these.
double expected_count(const std::vector<double>& values, const std::vector<double>& residuals, const Wanted& wanted) {
  double sum = 0;
  std::size_t settled = 0;
  while (settled < residuals.size() && residuals[settled] < 1e-2 * values[settled] && sum < wanted.sum) sum += values[settled++];
  if (settled == 0) return 0;
  return static_cast<double>(settled) + std::max(0.0, wanted.sum - sum) / values[settled - 1];
}

// Whether no eigenvalue of a, other than those of the vectors found, exceeds `level`.
bool none_above(const SymmetricMatrix& a, const LeadingPairs& found, double level) {
  Matrix scaled = found.vectors;
  std::vector<double> roots;
  for (std::size_t i = 0; i < scaled.cols; ++i) roots.push_back(std::sqrt(found.eigenvalues[i]));
  scale_columns(&scaled, roots);
  return a.none_above(scaled, level);
}

}  // namespace

// By Cauchy and Schwarz, k eigenvalues sum to at most sqrt(k) times the norm.
double fewest_possible(const SymmetricMatrix& a, const Wanted& wanted) {
  if (wanted.count) return static_cast<double>(wanted.count);
  return wanted.sum * wanted.sum / a.sum_of_squares();
}

std::optional<LeadingPairs> leading_pairs(const Lapack& lapack, const SymmetricMatrix& a, const Wanted& wanted) {
  const std::size_t d = a.size();
  const auto too_many = [d](double count) { return count * kMostPairs > static_cast<double>(d); };
  if (d < kSmallest || too_many(fewest_possible(a, wanted))) return std::nullopt;
  Basis basis(lapack, a);
  for (std::size_t blocks = 1; basis.size() + kBlock <= d / kMostBasis; ++blocks) {
    basis.grow();
    if (blocks % kBlocksPerLook) continue;
    const Spectrum t = decompose(lapack, basis.projection());
    LeadingPairs found{{t.eigenvalues.rbegin(), t.eigenvalues.rend()}, {}};
    const std::size_t count = wanted_count(found.eigenvalues, wanted);
    if (count > basis.size() / 2) continue;
    std::vector<double> unused;
    const Matrix coordinates = leading_eigenvectors(lapack, t, count ? count + 1 : basis.size() / 2, &unused);
    const std::vector<double> residuals = basis.residuals(coordinates);
    if (count == 0) {
      if (too_many(expected_count(found.eigenvalues, residuals, wanted))) return std::nullopt;
      continue;
    }
    const double accuracy = kUnit64 * std::sqrt(static_cast<double>(d)) * found.eigenvalues.front();
    if (*std::max_element(residuals.begin(), residuals.end()) > accuracy) continue;
    found.eigenvalues.resize(count + 1);
    found.vectors = basis.expand(columns_of(coordinates, 0, count));
    const double last = found.eigenvalues[count - 1], next = found.eigenvalues[count];
    if (!none_above(a, found, next + std::max(0.1 * (last - next), 4 * accuracy))) return std::nullopt;
    return found;
  }
  return std::nullopt;
}

}  // namespace streamcca
