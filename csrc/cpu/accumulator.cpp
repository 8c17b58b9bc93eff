#include "cpu/accumulator.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <sstream>

#include "core/error.h"
#include "core/units.h"
#include "cpu/accumulator_detail.h"
#include "cpu/dispatch.h"
#include "cpu/shift.h"
#include "cpu/threads.h"

namespace streamcca {
namespace {

const long kProcessAtLoad = static_cast<long>(getpid());

constexpr double kPollSeconds = 0.05;

double square(double x) { return x * x; }

// Variance of the error of one block of `rows` rows and total weight `weight`, added to a state of weight
// `total`, times the weight squared (docs/numerics.md): a chain of `rows` additions, the rounding of each
// row's difference, the addition in float64.
double block_variance(Products products, double rows, double weight, double total) {
  const double unit = unit_roundoff(products);
  return (square(0.3 * unit) * rows + square(0.6 * unit) / rows) * square(weight) + square(0.5 * kUnit64 * total);
}

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

// Calls `poll` if the last call was long enough ago.
std::function<void()> every_50_ms(const Accumulator::Poll& poll) {
  using Clock = std::chrono::steady_clock;
  return [&poll, last = Clock::now()]() mutable {
    const auto now = Clock::now();
    if (std::chrono::duration<double>(now - last).count() < kPollSeconds) return;
    last = now;
    poll();
  };
}

}  // namespace

Accumulator::Accumulator(std::vector<View> views, std::vector<Pair> pairs, Precision precision, NonFinite nonfinite, int threads)
    : views_(std::move(views)),
      pairs_(std::move(pairs)),
      precision_(precision),
      nonfinite_(nonfinite),
      threads_(threads),
      process_(static_cast<long>(getpid())),
      kernels_(active_kernels()) {
  clear();
}

Accumulator::Accumulator(const Accumulator& configuration, Empty)
    : views_(configuration.views_),
      pairs_(configuration.pairs_),
      precision_(configuration.precision_),
      nonfinite_(configuration.nonfinite_),
      threads_(configuration.threads_),
      process_(static_cast<long>(getpid())),
      kernels_(configuration.kernels_) {
  clear();
}

Accumulator::Accumulator(const Accumulator& other) : Accumulator(other, Empty{}) {
  const std::lock_guard<std::recursive_mutex> lock(other.mutex_);
  assign(other);
}

void Accumulator::assign(const Accumulator& other) {
  auto store = other.started_ ? other.store_->clone() : nullptr;
  Head head = other.head_;
  PerView shift = other.shift_;
  if (store && !other.settled_) {  // copies of vectors lose the spare capacity
    for (std::size_t v = 0; v < views_.size(); ++v) head.values[v].reserve(block_depth(other.products_) * views_[v].width);
    head.roots.reserve(block_depth(other.products_));
  }
  head_rows_.resize(views_.size());
  started_ = other.started_;
  settled_ = other.settled_;
  products_ = other.products_;
  store_ = std::move(store);
  head_ = std::move(head);
  shift_ = std::move(shift);
  rows_ = other.rows_;
  skipped_ = other.skipped_;
  weight_ = other.weight_;
  block_weight_ = other.block_weight_;
  rounding_ = other.rounding_;
  row_unit_ = other.row_unit_;
}

void Accumulator::clear() {
  head_ = Head{PerView(views_.size()), {}};
  started_ = settled_ = false;  // the store's memory stays, for the next start
  shift_.clear();
  rows_ = skipped_ = 0;
  weight_ = block_weight_ = rounding_ = 0;
  row_unit_ = 1;
}

void Accumulator::reset() {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const Busy busy(&busy_);
  clear();
}

// ---------------------------------------------------------------- update

void Accumulator::check_process() const {
  const long here = static_cast<long>(getpid());
  std::ostringstream text;
  if (here != process_) {
    text << "these moments were made in process " << process_ << " and are updated in its fork " << here
         << ", where the rows would be lost; update them in the parent, or make moments with threads=1 in each worker, save and merge them";
    throw Error(ErrorKind::process, text.str());
  }
  // GNU OpenMP hangs in a child forked after the parent used threads.
  if (here != kProcessAtLoad && threads_ != 1) {
    text << "process " << here << " was forked after streamcca was loaded, where OpenMP threads would hang; "
         << "pass threads=1, or start workers with the 'spawn' method";
    throw Error(ErrorKind::process, text.str());
  }
}

void Accumulator::check_shapes(const std::vector<Rows>& rows) const {
  for (std::size_t v = 0; v < views_.size(); ++v) {
    std::ostringstream text;
    if (rows[v].cols != views_[v].width) {
      text << "view '" << views_[v].name << "': got rows of width " << rows[v].cols << ", expected " << views_[v].width
           << "; pass rows as (n, " << views_[v].width << ") or declare the view with width " << rows[v].cols;
      throw Error(ErrorKind::value, text.str());
    }
    if (rows[v].rows != rows[0].rows) {
      text << "view '" << views_[v].name << "': got " << rows[v].rows << " rows, expected " << rows[0].rows << " as in view '"
           << views_[0].name << "'; every view must see the same rows in the same order";
      throw Error(ErrorKind::value, text.str());
    }
  }
}

Products Accumulator::products_for(const std::vector<Rows>& rows) const {
  if (precision_ == Precision::f32) return Products::f32;
  if (precision_ == Precision::f64) return Products::f64;
  const auto wide = std::find_if(rows.begin(), rows.end(), [](const Rows& r) { return r.dtype == DType::f64; });
  if (!started_) return wide == rows.end() ? Products::f32 : Products::f64;
  if (products_ == Products::f32 && wide != rows.end()) {
    throw Error(ErrorKind::dtype, "view '" + views_[static_cast<std::size_t>(wide - rows.begin())].name +
                                      "': got float64 rows, expected float32 or narrower as in the first batch, which fixed float32 "
                                      "products; construct with precision='float64' or 'float32' to mix them");
  }
  return products_;
}

std::vector<double> Accumulator::largest_shifts() const {
  std::vector<double> largest;
  for (std::size_t v = 0; settled_ && v < views_.size(); ++v) {
    largest.push_back(0);
    for (double shift : shift_[v]) largest.back() = std::max(largest.back(), std::fabs(shift));
  }
  return largest;
}

// All memory that updates will need, so that nothing can fail once rows are being counted.
void Accumulator::start(Products products) {
  const bool again = store_ && products == products_;
  auto store = again ? nullptr : MomentStore::create(views_, pairs_, products, kernels_);
  if (store) store->reserve();
  Head head{PerView(views_.size()), {}};
  PerView shift;
  for (std::size_t v = 0; v < views_.size(); ++v) {
    head.values[v].reserve(block_depth(products) * views_[v].width);
    shift.emplace_back(views_[v].width);
  }
  head.roots.reserve(block_depth(products));
  head_rows_.resize(views_.size());
  if (again) {
    store_->clear();
  } else {
    store_ = std::move(store);
  }
  head_ = std::move(head);
  shift_ = std::move(shift);
  products_ = products;
  started_ = true;
}

void Accumulator::update(const std::vector<Rows>& rows, const double* weights, const Poll& poll) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const Busy busy(&busy_);
  check_process();
  check_shapes(rows);
  const Products products = products_for(rows);
  const std::vector<double> shifts = largest_shifts();
  const Selection selection = select_rows(rows, weights, {views_, kernels_, products, nonfinite_, shifts, rows_, weight_, threads_});
  std::vector<double> roots;
  if (weights) {
    roots.resize(rows[0].rows);
    std::transform(weights, weights + rows[0].rows, roots.begin(), [](double weight) { return std::sqrt(weight); });
  }
  const auto between_blocks = poll ? every_50_ms(poll) : std::function<void()>([] {});
  if (!started_ && !selection.runs.empty()) start(products);
  // From here on only `poll` may throw.
  skipped_ += selection.skipped;
  if (!selection.runs.empty()) {
    for (const Rows& view : rows) row_unit_ = std::min(row_unit_, unit_roundoff(view.dtype));
  }
  for (const Run& run : selection.runs) consume(rows, run, weights ? roots.data() : nullptr, weights, between_blocks);
}

void Accumulator::consume(const std::vector<Rows>& rows, Run run, const double* roots, const double* weights,
                          const std::function<void()>& between_blocks) {
  while (run.count) {
    const std::size_t room = settled_ ? store_->free_rows() : block_depth(products_) - head_.roots.size();
    const std::size_t count = std::min(run.count, room);
    if (settled_) {
      store_->append(rows, run.first, count, roots ? roots + run.first : nullptr, threads_);
    } else {
      append_to_head(rows, run.first, count, roots);
    }
    count_rows(run.first, count, weights);
    run.first += count;
    run.count -= count;
    if (!settled_ && head_.roots.size() == block_depth(products_)) settle();
    if (settled_ && store_->free_rows() == 0) flush();
    between_blocks();
  }
}

void Accumulator::append_to_head(const std::vector<Rows>& rows, std::size_t first, std::size_t count, const double* roots) {
  for (std::size_t v = 0; v < views_.size(); ++v) {
    std::vector<double>& values = head_.values[v];
    for (std::size_t i = first; i < first + count; ++i) {
      for (std::size_t c = 0; c < views_[v].width; ++c) values.push_back(element_value(rows[v], i, c));
    }
  }
  for (std::size_t i = first; i < first + count; ++i) head_.roots.push_back(roots ? roots[i] : 1.0);
}

void Accumulator::count_rows(std::size_t first, std::size_t count, const double* weights) {
  rows_ += count;
  for (std::size_t i = first; i < first + count; ++i) {
    const double weight = weights ? weights[i] : 1.0;
    weight_ += weight;
    block_weight_ += weight;
  }
}

// ---------------------------------------------------------------- head, block, state

void Accumulator::choose_shift_of_head(PerView* shift) const {
  for (std::size_t v = 0; v < views_.size(); ++v) {
    choose_shift(head_.values[v].data(), head_.roots.size(), views_[v].width, products_, (*shift)[v].data());
  }
}

void Accumulator::settle() {
  if (settled_ || !started_) return;
  choose_shift_of_head(&shift_);
  store_->set_shift(shift_);
  for (std::size_t v = 0; v < views_.size(); ++v) head_rows_[v] = borrow(head_.values[v], head_.roots.size(), views_[v].width);
  store_->append(head_rows_, 0, head_.roots.size(), head_.roots.data(), threads_);
  for (std::vector<double>& values : head_.values) std::vector<double>().swap(values);
  std::vector<double>().swap(head_.roots);
  settled_ = true;
}

void Accumulator::flush() {
  rounding_ = rounding_with_pending();
  store_->flush(threads_);
  block_weight_ = 0;
}

double Accumulator::rounding_with_pending() const {
  const std::size_t pending = settled_ ? store_->pending_rows() : head_.roots.size();
  return pending ? rounding_ + block_variance(products_, static_cast<double>(pending), block_weight_, weight_) : rounding_;
}

template <class Use>
void Accumulator::read(Use use) const {
  if (settled_) return use(*store_, shift_);
  PerView shift;
  for (const View& view : views_) shift.emplace_back(view.width);
  choose_shift_of_head(&shift);
  const auto store = MomentStore::create(views_, pairs_, products_, kernels_);
  store->set_shift(shift);
  store->append(borrow_all(head_.values, views_, head_.roots.size()), 0, head_.roots.size(), head_.roots.data(), 1);
  use(*store, shift);
}

// ---------------------------------------------------------------- results

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
    if (uncertainty && row_view == col_view) observe_rounding(out, width + 1, squares.data(), divisor, uncertainty);
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

// The model assumes that roundings are independent. Rows that repeat, few distinct values and heavy tails
// break that, so the error of the diagonal is measured against the squares summed in float64, and what was
// observed counts where it is more: its root mean square for all neurons, its size for the neuron itself.
void Accumulator::observe_rounding(const double* diagonal, std::size_t stride, const double* squares, double divisor,
                                   Uncertainty* uncertainty) const {
  const std::size_t width = uncertainty->raw.size();
  std::vector<double> observed(width, 0.0);
  double total = 0, live = 0;
  for (std::size_t i = 0; i < width; ++i) {
    if (!(squares[i] > 0)) continue;
    observed[i] = std::fabs(diagonal[i * stride] - squares[i]) / squares[i];
    total += square(observed[i]);
    ++live;
  }
  const double model = rounding_with_pending() / square(weight_) + square(2 * kUnit64);
  const double relative = std::sqrt(std::max(model, live > 0 ? total / live : 0.0));
  // Products below the smallest normal number lose digits that no relative error speaks of.
  const double underflow = smallest_step(products_) * static_cast<double>(rows_) / divisor / relative;
  for (std::size_t i = 0; i < width; ++i) {
    uncertainty->raw[i] = std::max(squares[i] / divisor * std::max(1.0, observed[i] / relative), underflow);
  }
  uncertainty->relative = relative;
  uncertainty->rows = row_unit_;
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
