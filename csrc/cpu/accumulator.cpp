#include "cpu/accumulator.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <sstream>

#include "core/error.h"
#include "cpu/dispatch.h"
#include "cpu/shift.h"

namespace streamcca {
namespace {

const long kProcessAtLoad = static_cast<long>(getpid());

constexpr double kUnit32 = 5.9604644775390625e-08;  // 2^-24
constexpr double kUnit64 = 1.1102230246251565e-16;  // 2^-53
constexpr double kPollSeconds = 0.05;

double unit_of(Products products) { return products == Products::f32 ? kUnit32 : kUnit64; }

double square(double x) { return x * x; }

// One block of `rows` rows of total weight `weight`, added to a state of weight `total` (docs/numerics.md):
// a chain of `rows` additions, the rounding of each row's difference, the addition in float64. A part of
// the chain's error is taken as systematic, since rows that repeat round the same way each time.
void add_block(Rounding* rounding, Products products, double rows, double weight, double total) {
  const double unit = unit_of(products);
  const double chain = 0.3 * std::sqrt(rows) * unit * weight;
  rounding->variance += square(chain) + square(0.6 * unit * weight) / rows + square(0.5 * kUnit64 * total);
  rounding->systematic += 0.1 * chain;
}

Rows borrow(const std::vector<double>& values, std::size_t rows, std::size_t width) {
  const auto size = static_cast<std::ptrdiff_t>(sizeof(double));
  return {reinterpret_cast<const unsigned char*>(values.data()), rows, width, static_cast<std::ptrdiff_t>(width) * size, size, DType::f64};
}

std::vector<Rows> borrow_all(const std::vector<std::vector<double>>& values, const std::vector<View>& views, std::size_t rows) {
  std::vector<Rows> result;
  for (std::size_t v = 0; v < views.size(); ++v) result.push_back(borrow(values[v], rows, views[v].width));
  return result;
}

class PollTimer {
 public:
  void operator()(const Accumulator::Poll& poll) {
    const auto now = std::chrono::steady_clock::now();
    if (std::chrono::duration<double>(now - last_).count() < kPollSeconds) return;
    last_ = now;
    poll();
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace

Accumulator::Accumulator(std::vector<View> views, std::vector<Pair> pairs, Precision precision, NonFinite nonfinite, int threads)
    : views_(std::move(views)),
      pairs_(std::move(pairs)),
      precision_(precision),
      nonfinite_(nonfinite),
      threads_(threads),
      process_(static_cast<long>(getpid())) {
  active_kernels();  // a bad STREAMCCA_ISA is reported here, not by the first batch
  clear();
}

Accumulator::Accumulator(const Accumulator& other)
    : Accumulator(other.views_, other.pairs_, other.precision_, other.nonfinite_, other.threads_) {
  const std::lock_guard<std::mutex> lock(other.mutex_);
  assign(other);
}

void Accumulator::assign(const Accumulator& other) {
  started_ = other.started_;
  settled_ = other.settled_;
  products_ = other.products_;
  store_ = other.store_ ? other.store_->clone() : nullptr;
  head_ = other.head_;
  shift_ = other.shift_;
  rows_ = other.rows_;
  skipped_ = other.skipped_;
  weight_ = other.weight_;
  block_weight_ = other.block_weight_;
  rounding_ = other.rounding_;
}

void Accumulator::clear() {
  started_ = settled_ = false;
  store_.reset();
  head_ = Head{std::vector<std::vector<double>>(views_.size()), {}};
  shift_.clear();
  rows_ = skipped_ = 0;
  weight_ = block_weight_ = 0;
  rounding_ = Rounding{};
}

void Accumulator::reset() {
  const std::lock_guard<std::mutex> lock(mutex_);
  clear();
}

// ---------------------------------------------------------------- update

void Accumulator::check_process() const {
  const long here = static_cast<long>(getpid());
  std::ostringstream text;
  if (here != process_) {
    text << "these moments were made in process " << process_ << " and are updated in its fork " << here
         << ", where the rows would be lost; update them in the parent, or make moments in each worker, save and merge them";
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

void Accumulator::update(const std::vector<Rows>& rows, const double* weights, const Poll& poll) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_process();
  check_shapes(rows);
  const Products products = products_for(rows);
  const Selection selection = select_rows(rows, weights, {views_, active_kernels(), products, nonfinite_, rows_, threads_});
  skipped_ += selection.skipped;
  if (selection.runs.empty()) return;

  std::vector<double> roots;
  if (weights) {
    for (std::size_t i = 0; i < rows[0].rows; ++i) roots.push_back(std::sqrt(weights[i]));
  }
  if (!started_) {
    // All memory now, so that nothing can fail once rows are being counted.
    auto store = MomentStore::create(views_, pairs_, products, active_kernels());
    store->reserve();
    store_ = std::move(store);
    products_ = products;
    started_ = true;
  }
  for (const Run& run : selection.runs) consume(rows, run, weights ? roots.data() : nullptr, weights, poll);
}

void Accumulator::consume(const std::vector<Rows>& rows, Run run, const double* roots, const double* weights, const Poll& poll) {
  PollTimer timer;
  const std::size_t depth = block_depth(products_);
  while (run.count) {
    const std::size_t room = settled_ ? store_->free_rows() : depth - head_.roots.size();
    const std::size_t count = std::min(run.count, room);
    if (settled_) {
      store_->append(rows, run.first, count, shift_, roots ? roots + run.first : nullptr, threads_);
    } else {
      append_to_head(rows, run.first, count, roots);
    }
    count_rows(run.first, count, weights);
    run.first += count;
    run.count -= count;
    if (!settled_ && head_.roots.size() == depth) settle();
    if (settled_ && store_->free_rows() == 0) flush();
    if (poll) timer(poll);
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

std::vector<std::vector<double>> Accumulator::shift_of_head() const {
  std::vector<std::vector<double>> shift;
  for (std::size_t v = 0; v < views_.size(); ++v) {
    shift.push_back(choose_shift(head_.values[v], head_.roots.size(), views_[v].width, products_));
  }
  return shift;
}

void Accumulator::settle() {
  if (settled_ || !started_) return;
  shift_ = shift_of_head();
  store_->append(borrow_all(head_.values, views_, head_.roots.size()), 0, head_.roots.size(), shift_, head_.roots.data(), threads_);
  head_ = Head{std::vector<std::vector<double>>(views_.size()), {}};
  settled_ = true;
}

void Accumulator::flush() {
  rounding_ = rounding_with_pending();
  store_->flush(threads_);
  block_weight_ = 0;
}

Rounding Accumulator::rounding_with_pending() const {
  Rounding result = rounding_;
  const std::size_t pending = settled_ ? store_->pending_rows() : head_.roots.size();
  if (pending) add_block(&result, products_, static_cast<double>(pending), block_weight_, weight_);
  return result;
}

std::unique_ptr<MomentStore> Accumulator::store_of_head(const std::vector<std::vector<double>>& shift) const {
  auto store = MomentStore::create(views_, pairs_, products_, active_kernels());
  store->append(borrow_all(head_.values, views_, head_.roots.size()), 0, head_.roots.size(), shift, head_.roots.data(), threads_);
  return store;
}

template <class Use>
void Accumulator::read(Use use) const {
  if (settled_) {
    use(*store_, shift_);
  } else {
    const auto shift = shift_of_head();
    use(*store_of_head(shift), shift);
  }
}

// ---------------------------------------------------------------- results

void Accumulator::mean(std::size_t view, double* out) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  read([&](const MomentStore& store, const std::vector<std::vector<double>>& shift) {
    store.read_sums(view, true, out);
    for (std::size_t c = 0; c < views_[view].width; ++c) out[c] = shift[view][c] + out[c] / weight_;
  });
}

void Accumulator::covariance(std::size_t pair, double ddof, double* out, double* raw_diagonal) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const std::size_t row_view = pairs_[pair].row_view, col_view = pairs_[pair].col_view;
  const std::size_t height = views_[row_view].width, width = views_[col_view].width;
  read([&](const MomentStore& store, const std::vector<std::vector<double>>&) {
    std::vector<double> row_sums(height), col_sums(width);
    store.read_pair(pair, true, out, threads_);
    store.read_sums(row_view, true, row_sums.data());
    store.read_sums(col_view, true, col_sums.data());
    const double divisor = weight_ - ddof;
    for (std::size_t r = 0; r < height; ++r) {
      if (raw_diagonal) raw_diagonal[r] = out[r * width + r] / divisor;
      for (std::size_t c = 0; c < width; ++c) {
        out[r * width + c] = (out[r * width + c] - row_sums[r] * (col_sums[c] / weight_)) / divisor;
      }
    }
    // s_r * (s_c / w) and s_c * (s_r / w) can differ in the last bit.
    if (row_view == col_view) {
      for (std::size_t r = 0; r < height; ++r) {
        for (std::size_t c = 0; c < r; ++c) out[r * width + c] = out[c * width + r];
      }
    }
  });
}

double Accumulator::relative_rounding() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (weight_ == 0) return 0;
  const Rounding r = rounding_with_pending();
  return std::sqrt(r.variance + square(r.systematic)) / weight_;
}

std::uint64_t Accumulator::rows() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return rows_;
}

double Accumulator::weight() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return weight_;
}

std::uint64_t Accumulator::skipped() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return skipped_;
}

bool Accumulator::started() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return started_;
}

Products Accumulator::products() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return products_;
}

}  // namespace streamcca
