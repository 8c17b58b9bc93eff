// Reading moments: means, covariances, counts. Nothing here changes the state.
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "core/units.h"
#include "cpu/accumulator.h"
#include "cpu/accumulator_detail.h"
#include "cpu/threads.h"

namespace streamcca {
namespace {

// Copies the upper triangle below the diagonal, square by square so that both sides stay in the cache.
void mirror(double* matrix, std::size_t width, int threads) {
  constexpr std::size_t side = 32;
  const auto squares = static_cast<std::ptrdiff_t>((width + side - 1) / side);
#pragma omp parallel for schedule(dynamic) num_threads(thread_count(threads))
  for (std::ptrdiff_t s = 0; s < squares; ++s) {
    const std::size_t first_row = static_cast<std::size_t>(s) * side, last_row = std::min(width, first_row + side);
    for (std::size_t first = 0; first < last_row; first += side) {
      for (std::size_t r = first_row; r < last_row; ++r) {
        for (std::size_t c = first; c < std::min(r, first + side); ++c) matrix[r * width + c] = matrix[c * width + r];
      }
    }
  }
}

}  // namespace

template <class Use>
void Accumulator::read(Use use) const {
  if (settled_) return use(*store_, shift_);
  PerView shift;
  for (const View& view : views_) shift.emplace_back(view.width);
  choose_shift_of_head(&shift);
  const auto store = MomentStore::create(views_, pairs_, products_, kernels_);
  store->set_shift(shift);
  store->append_all(borrow_all(head_.values, views_, head_.roots.size()), head_.roots.size(), head_.roots.data(), 1);
  use(*store, shift);
}

// A forked child may read what it inherited, without the threads that it lacks. Nor are threads woken for
// matrices that one core reads in milliseconds: OpenBLAS's threads spin for 0.1 s after each of their jobs, and a
// team of OpenMP that meets them waits for a core (docs/performance.md).
int Accumulator::reading_threads(std::size_t elements) const {
  constexpr std::size_t few = 1 << 22;
  return elements < few || static_cast<long>(getpid()) != kProcessAtLoad ? 1 : threads_;
}

void Accumulator::mean(std::size_t view, double* out) const {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  read([&](const MomentStore& store, const PerView& shift) {
    std::vector<double> squares(views_[view].width);
    store.read_columns(view, true, out, squares.data());
    for (std::size_t c = 0; c < views_[view].width; ++c) out[c] = shift[view][c] + out[c] / weight_;
  });
}

void Accumulator::covariance(std::size_t pair, double ddof, double* out, Uncertainty* uncertainty) const {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const std::size_t row_view = pairs_[pair].row_view, col_view = pairs_[pair].col_view;
  const std::size_t height = views_[row_view].width, width = views_[col_view].width;
  read([&](const MomentStore& store, const PerView&) {
    std::vector<double> row_sums(height), col_sums(width), squares(std::max(height, width));
    store.read_pair(pair, true, out, reading_threads(height * width));
    store.read_columns(row_view, true, row_sums.data(), squares.data());
    store.read_columns(col_view, true, col_sums.data(), squares.data());
    const double divisor = weight_ - ddof;
    if (uncertainty && row_view == col_view) {
      *uncertainty = observe_rounding({out, width + 1, squares.data(), width, rounding_with_pending() / square(weight_), divisor,
                                       static_cast<double>(rows_), smallest_step(products_), row_unit_});
    }
    for (double& sum : col_sums) sum /= weight_;
    const bool symmetric = row_view == col_view;
    const int threads = reading_threads(height * width);
    const auto rows = static_cast<std::ptrdiff_t>(height);
#pragma omp parallel for schedule(dynamic, 64) num_threads(thread_count(threads))
    for (std::ptrdiff_t i = 0; i < rows; ++i) {
      const auto r = static_cast<std::size_t>(i);
      double* row = out + r * width;
      for (std::size_t c = symmetric ? r : 0; c < width; ++c) row[c] = (row[c] - row_sums[r] * col_sums[c]) / divisor;
    }
    if (symmetric) mirror(out, width, threads);
  });
}

std::uint64_t Accumulator::rows() const {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  return rows_;
}

double Accumulator::weight() const {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  return weight_;
}

std::uint64_t Accumulator::skipped() const {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  return skipped_;
}

bool Accumulator::started() const {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  return started_;
}

Products Accumulator::products() const {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  return products_;
}

}  // namespace streamcca
