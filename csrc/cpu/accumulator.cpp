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

constexpr double kPollSeconds = 0.05;

// Variance of the error of one block of `rows` rows and total weight `weight`, added to a state of weight
// `total`, times the weight squared (docs/numerics.md): a chain of `rows` additions, the rounding of each
// row's difference, the addition in float64.
double block_variance(Products products, double rows, double weight, double total) {
  const double unit = unit_roundoff(products);
  return (square(0.3 * unit) * rows + square(0.6 * unit) / rows) * square(weight) + square(0.5 * kUnit64 * total);
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
  const bool fits = store_ && other.started_ && started_ && products_ == other.products_;
  auto store = fits || !other.started_ ? nullptr : other.store_->clone();
  Head head = other.head_;
  PerView shift = other.shift_;
  if (other.started_ && !other.settled_) {  // copies of vectors lose the spare capacity
    for (std::size_t v = 0; v < views_.size(); ++v) head.values[v].reserve(kHeadRows * views_[v].width);
    head.roots.reserve(kHeadRows);
  }
  head_rows_.resize(views_.size());
  if (fits) {
    store_->assign(*other.store_);
  } else {
    store_ = std::move(store);
  }
  started_ = other.started_;
  settled_ = other.settled_;
  products_ = other.products_;
  head_ = std::move(head);
  shift_ = std::move(shift);
  rows_ = other.rows_;
  skipped_ = other.skipped_;
  weight_ = other.weight_;
  block_rows_ = other.block_rows_;
  block_weight_ = other.block_weight_;
  rounding_ = other.rounding_;
  row_unit_ = other.row_unit_;
}

void Accumulator::clear() {
  head_ = Head{PerView(views_.size()), {}};
  started_ = settled_ = false;  // the store's memory stays, for the next start
  shift_.clear();
  rows_ = skipped_ = block_rows_ = 0;
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
    head.values[v].reserve(kHeadRows * views_[v].width);
    shift.emplace_back(views_[v].width);
  }
  head.roots.reserve(kHeadRows);
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

// The whole batch is checked before the state changes. Where reading it twice from memory would cost more than a copy of
// the state, it is checked piece by piece instead, each just before it is packed, and the copy comes back if a
// later piece is refused.
void Accumulator::update(const std::vector<Rows>& rows, const double* weights, const Poll& poll) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const Busy busy(&busy_);
  check_process();
  check_shapes(rows);
  const std::size_t count = rows[0].rows;
  const Products products = products_for(rows);
  FilterContext context{views_, kernels_, products, nonfinite_, {}, rows_, weight_, check_weights(weights, count), threads_};
  std::vector<double> roots(weights ? count : 0);
  for (std::size_t i = 0; i < roots.size(); ++i) roots[i] = std::sqrt(weights[i]);
  const auto between_blocks = poll ? every_50_ms(poll) : std::function<void()>([] {});

  const bool piecewise = copy_is_cheaper_than(rows);
  if (piecewise) save_to(&checkpoint_);
  for (Run rest{0, count}; rest.count;) {
    if (piecewise && !weights && settled_) {
      context.shifts = largest_shifts();
      const MagnitudeCheck check(rows, context);
      const std::size_t added = add_blocks(rows, rest, nullptr, nullptr, &check);
      if (added) between_blocks();
      rest = {rest.first + added, rest.count - added};
      if (added) continue;
    }
    const Run piece{rest.first, piecewise ? rows_to_take(rest.count) : rest.count};
    rest = {piece.first + piece.count, rest.count - piece.count};
    Selection selection;
    try {
      context.shifts = largest_shifts();
      selection = select_rows(rows, piece, weights, context);
      if (!started_ && !selection.runs.empty()) start(products);
    } catch (...) {
      if (piecewise) assign(*checkpoint_);
      throw;
    }
    // From here on only `poll` may throw.
    skipped_ += selection.skipped;
    for (const Run& run : selection.runs) consume(rows, run, weights ? roots.data() : nullptr, weights, between_blocks);
  }
}

void Accumulator::check(const std::vector<Rows>& rows) const {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  check_shapes(rows);
  const FilterContext context{views_, kernels_, products_for(rows), nonfinite_, largest_shifts(), rows_, weight_, 1, threads_};
  select_rows(rows, {0, rows[0].rows}, nullptr, context);
}

void Accumulator::finish() {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const Busy busy(&busy_);
  if (rows_ == 0) return;
  settle();
  flush();
}

bool Accumulator::copy_is_cheaper_than(const std::vector<Rows>& rows) const {
  constexpr std::size_t times = 4;
  if (nonfinite_ == NonFinite::propagate || rows[0].rows <= rows_to_take(rows[0].rows)) return false;
  std::size_t bytes = 0;
  for (const Rows& view : rows) bytes += view.rows * view.cols * size_of(view.dtype);
  return !started_ || bytes > times * store_->state_bytes();
}

// Into memory that stays: fresh pages would cost more than the copy.
void Accumulator::save_to(std::unique_ptr<Accumulator>* kept) {
  if (!*kept) kept->reset(new Accumulator(*this, Empty{}));
  (*kept)->assign(*this);
}

void Accumulator::mark() {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const Busy busy(&busy_);
  save_to(&mark_);
}

void Accumulator::return_to_mark() {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const Busy busy(&busy_);
  if (!mark_) throw Error(ErrorKind::value, "return_to_mark: nothing was marked");
  assign(*mark_);
}

std::unique_ptr<Accumulator> Accumulator::copy_of_mark() const {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  if (!mark_) throw Error(ErrorKind::value, "copy_of_mark: nothing was marked");
  return std::make_unique<Accumulator>(*mark_);
}

std::size_t Accumulator::rows_to_take(std::size_t available) const {
  return settled_ ? store_->rows_to_append(available) : std::min(available, kHeadRows - head_.roots.size());
}

void Accumulator::consume(const std::vector<Rows>& rows, Run run, const double* roots, const double* weights,
                          const std::function<void()>& between_blocks) {
  while (run.count) {
    const double* run_roots = roots ? roots + run.first : nullptr;
    if (const std::size_t added = add_blocks(rows, run, run_roots, weights, nullptr)) {
      run = {run.first + added, run.count - added};
      between_blocks();
      continue;
    }
    const std::size_t count = rows_to_take(run.count);
    if (settled_) {
      store_->append(rows, run.first, count, run_roots, threads_);
    } else {
      append_to_head(rows, run.first, count, roots);
    }
    count_rows(rows, {run.first, count}, weights);
    run.first += count;
    run.count -= count;
    if (!settled_ && head_.roots.size() == kHeadRows) settle();
    if (settled_ && store_->has_full_block()) store_->flush(threads_, {&rows, run.first, rows[0].rows - run.first});
    between_blocks();
  }
}

// Whole blocks, by a team that takes one each, as far as their values are fine: how many rows, and none where that does not pay.
std::size_t Accumulator::add_blocks(const std::vector<Rows>& rows, Run run, const double* roots, const double* weights,
                                    const MagnitudeCheck* check) {
  const std::size_t blocks = settled_ ? store_->blocks_to_add(run.count, threads_) : 0;
  if (!blocks) return 0;
  MomentStore::Passes passes;
  if (check) passes = [check](Run piece) { return check->passes(piece, 1); };
  const std::size_t added = store_->depth() * store_->add_blocks(rows, run.first, blocks, roots, threads_, passes);
  count_rows(rows, {run.first, added}, weights);
  return added;
}

void Accumulator::append_to_head(const std::vector<Rows>& rows, std::size_t first, std::size_t count, const double* roots) {
  for (std::size_t v = 0; v < views_.size(); ++v) {
    std::vector<double>& values = head_.values[v];
    const std::size_t before = values.size();
    values.resize(before + count * views_[v].width);  // within what start() has reserved
    copy_values(rows[v], first, count, values.data() + before);
  }
  for (std::size_t i = first; i < first + count; ++i) head_.roots.push_back(roots ? roots[i] : 1.0);
}

void Accumulator::count_rows(const std::vector<Rows>& rows, Run run, const double* weights) {
  if (run.count) {
    for (const Rows& view : rows) row_unit_ = std::min(row_unit_, unit_roundoff(view.dtype));
  }
  rows_ += run.count;
  for (std::size_t i = run.first; i < run.first + run.count; ++i) {
    const double weight = weights ? weights[i] : 1.0;
    weight_ += weight;
    block_weight_ += weight;
    if (++block_rows_ == accounted_rows()) close_block();
  }
}

// ---------------------------------------------------------------- head, block, state

void Accumulator::choose_shift_of_head(PerView* shift) const {
  const bool keep_narrow = MomentStore::likes_narrow_rows(views_, pairs_, products_, kernels_);
  for (std::size_t v = 0; v < views_.size(); ++v) {
    choose_shift(head_.values[v].data(), head_.roots.size(), views_[v].width, products_, keep_narrow, (*shift)[v].data());
  }
}

void Accumulator::settle() {
  if (settled_ || !started_) return;
  choose_shift_of_head(&shift_);
  store_->set_shift(shift_);
  for (std::size_t v = 0; v < views_.size(); ++v) head_rows_[v] = borrow(head_.values[v], head_.roots.size(), views_[v].width);
  store_->append_all(head_rows_, head_.roots.size(), head_.roots.data(), threads_);
  for (std::vector<double>& values : head_.values) std::vector<double>().swap(values);
  std::vector<double>().swap(head_.roots);
  settled_ = true;
}

void Accumulator::flush() {
  close_block();
  store_->flush(threads_);
}

void Accumulator::close_block() {
  rounding_ = rounding_with_pending();
  block_rows_ = 0;
  block_weight_ = 0;
}

std::size_t Accumulator::accounted_rows() const { return std::min(kHeadRows, store_->depth()); }

double Accumulator::rounding_with_pending() const {
  return block_rows_ ? rounding_ + block_variance(products_, static_cast<double>(block_rows_), block_weight_, weight_) : rounding_;
}

}  // namespace streamcca
