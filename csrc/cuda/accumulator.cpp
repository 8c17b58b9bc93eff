#include "cuda/accumulator.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>

#include "core/error.h"
#include "core/units.h"

namespace streamcca::cuda {
namespace {

// Largest packed value, root of the weight included, so that no sum of a block overflows float32; in float64 the state sums all rows.
constexpr double kLargest32 = 1.25e17;
static_assert(kLargest32 * kLargest32 * kMostBlockRows < 3e38);
constexpr double kLargestSum64 = 1e306;
constexpr double kLargestWeight = 1e12;
// Rows whose rounding is accounted for at once, as on the CPU.
constexpr double kChain32 = 256;

constexpr double square(double x) { return x * x; }

void check_weight(double weight, std::size_t row) {
  if (weight >= 0 && weight <= kLargestWeight) return;
  std::ostringstream text;
  text << "weights, row " << row << " of the batch: weight is " << weight << ", expected a number from 0 to " << kLargestWeight;
  throw Error(ErrorKind::value, text.str());
}

}  // namespace

Accumulator::Accumulator(std::vector<View> views, std::vector<Pair> pairs, const Options& options)
    : views_(std::move(views)),
      pairs_(std::move(pairs)),
      options_(options),
      schedule_(views_, pairs_, kGeometry),
      plan_(views_, pairs_, schedule_) {
  if (views_.size() >= std::size_t{1} << kViewBits) throw Error(ErrorKind::value, "views: more than a million of them");
  if (options_.block_rows % kBlankRows) throw Error(ErrorKind::value, "block_rows: expected a multiple of 64");
}

Accumulator::~Accumulator() {
  try {
    // The caller's stream may be gone by now, so memory goes back in the order of the default stream, after the last kernel.
    if (last_) {
      const OnDevice on(options_.device);
      last_->hold_back(nullptr);
    }
  } catch (const Error&) {  // the driver has shut down: so has its memory
  }
  follow(nullptr);
  if (refused_) release_pinned(const_cast<unsigned*>(refused_));
  if (status_copy_) release_pinned(status_copy_);
}

// ---------------------------------------------------------------- checks

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

void Accumulator::check_device(int device) const {
  if (options_.device < 0 || options_.device == device) return;
  throw Error(ErrorKind::device, "rows are on cuda:" + std::to_string(device) + ", expected cuda:" + std::to_string(options_.device) +
                                     " where these moments live; move the rows, or merge moments of their own for each device");
}

Products Accumulator::products_for(const std::vector<Rows>& rows) const {
  if (options_.precision == Precision::f32) return Products::f32;
  if (options_.precision == Precision::f64) return Products::f64;
  const auto wide = std::find_if(rows.begin(), rows.end(), [](const Rows& r) { return r.dtype == DType::f64; });
  if (!now_.started) return wide == rows.end() ? Products::f32 : Products::f64;
  if (now_.products == Products::f32 && wide != rows.end()) {
    throw Error(ErrorKind::dtype, "view '" + views_[static_cast<std::size_t>(wide - rows.begin())].name +
                                      "': got float64 rows, expected float32 or narrower as in the first batch, which fixed float32 "
                                      "products; construct with precision='float64' or 'float32' to mix them");
  }
  return now_.products;
}

std::size_t Accumulator::depth() const { return options_.block_rows ? options_.block_rows : block_rows(columns()); }

Accumulator::Recorded::~Recorded() {
  try {
    if (of_.last_) of_.last_->record(of_.stream_);
  } catch (const Error&) {  // the device has failed, and every later call says so
  }
}

void Accumulator::use(Stream stream) {
  // A handle other than the default stream's may be that of a stream which is gone, given out once more.
  if (last_ && (stream != stream_ || stream)) last_->hold_back(stream);
  stream_ = stream;
  follow(stream);
}

// Memory goes back in the order of this stream: that on which it was made may be gone.
void Accumulator::follow(Stream stream) {
  for (Buffer* b : {&status_, &device_tasks_, &device_units_, &shift_, &head_, &head_roots_, &planes_, &halves_, &sums_, &parts_, &bad_})
    b->follow(stream);
  block_.follow(stream);
  if (state_) state_->follow(stream);
}

// ---------------------------------------------------------------- update

// The rows that take part, by view. Rows of weight zero are absent.
std::vector<Batch> Accumulator::batches_of(const std::vector<Rows>& rows, const double* weights, std::vector<double>* kept_weights) {
  std::vector<Batch> batches;
  for (const Rows& r : rows) batches.push_back({r, 0, r.rows});
  if (!weights) return batches;
  for (std::size_t i = 0; i < rows[0].rows; ++i) {
    check_weight(weights[i], i);
    if (weights[i] > 0) kept_weights->push_back(weights[i]);
  }
  for (Batch& batch : batches) batch.count = kept_weights->size();
  return batches;
}

void Accumulator::update(const std::vector<Rows>& rows, int device, const double* weights, Stream stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_shapes(rows);
  check_device(device);
  const bool known = last_ && last_->has_passed();  // a question, not a wait
  if (known) {
    if (*refused_) resolve();
    journal_.clear();
  }
  const Products products = products_for(rows);
  std::vector<double> kept;
  std::vector<Batch> batches = batches_of(rows, weights, &kept);
  if (batches[0].count == 0) return;
  options_.device = device;
  const OnDevice on(device);
  use(stream);
  const Recorded recorded(*this);
  const Kinds kinds = kinds_of(rows, weights);
  journal_.emplace_back(batch_ + 1, now_);
  try {
    if (!now_.started) start(products);
    reserve(batches[0].count, kinds, known);
  } catch (...) {
    now_ = journal_.back().second;
    journal_.pop_back();
    throw;
  }
  ++batch_;

  Buffer list, roots;
  if (weights) {
    std::vector<std::uint64_t> numbers;
    std::vector<double> square_roots;
    for (std::size_t i = 0; i < rows[0].rows; ++i) {
      if (!(weights[i] > 0)) continue;
      numbers.push_back(i);
      square_roots.push_back(std::sqrt(weights[i]));
    }
    list = uploads_.send(numbers.data(), numbers.size() * sizeof numbers[0], stream_);
    roots = uploads_.send(square_roots.data(), square_roots.size() * sizeof square_roots[0], stream_);
    for (Batch& batch : batches) batch.list = list.as<std::uint64_t>(), batch.roots = roots.as<double>();
  }
  if (options_.nonfinite == NonFinite::skip) {
    bad_ = Buffer(rows[0].rows, stream_);
    fill(bad_.as<void>(), 0, bad_.bytes(), stream_);
  }
  check_values(batches, kept);
  if (options_.nonfinite == NonFinite::skip) {
    for (Batch& batch : batches) batch.bad = bad_.as<unsigned char>();
    count_skipped({batches[0], status_.as<Status>(), batch_}, stream_);
  }

  for (const Rows& view : rows) now_.row_unit = std::min(now_.row_unit, unit_roundoff(view.dtype));
  if (!now_.settled) {
    const std::size_t count = std::min(batches[0].count, kHead - now_.fill);
    std::vector<Batch> first = batches;
    for (Batch& batch : first) batch.count = count;
    append(first, kinds, kept, true);
    for (Batch& batch : batches) batch.first += count, batch.count -= count;
    if (now_.fill == kHead) settle();
  }
  append(batches, kinds, kept, false);
}

void Accumulator::check_values(const std::vector<Batch>& batches, const std::vector<double>& weights) {
  if (options_.nonfinite == NonFinite::propagate) return;
  double largest = 1;
  for (double weight : weights) largest = std::max(largest, weight);
  const double total = now_.weight + static_cast<double>(batches[0].count) * largest;
  // Half of what may be packed, since the shift may be as large as any value.
  const double limit = (now_.products == Products::f32 ? kLargest32 / std::sqrt(largest) : std::sqrt(kLargestSum64 / total)) / 2;
  for (std::size_t v = 0; v < views_.size(); ++v) {
    Check check;
    check.batch = batches[v];
    check.limit = limit;
    check.skip = options_.nonfinite == NonFinite::skip;
    check.bad = bad_.as<unsigned char>();
    check.view = static_cast<std::uint32_t>(v);
    check.status = status_.as<Status>();
    check.number = batch_;
    check.refused = refused_;
    check_rows(check, stream_);
  }
}

// Fills slots, of the head or of block after block. `weights` are those of the rows from the start of the batch on, or empty.
void Accumulator::append(std::vector<Batch> batches, const Kinds& kinds, const std::vector<double>& weights, bool to_head) {
  while (batches[0].count) {
    const std::size_t room = (to_head ? kHead : depth()) - now_.fill, count = std::min(room, batches[0].count);
    if (!to_head) prepare_planes(kinds);
    for (std::size_t v = 0; v < views_.size(); ++v) {
      Batch piece = batches[v];
      piece.count = count;
      if (to_head) {
        fill_head({piece, ticket(), now_.fill, columns(), head_.as<double>() + first_column(v), v ? nullptr : head_roots_.as<double>()},
                  stream_);
        now_.kinds.narrow[v] = now_.kinds.narrow[v] && kinds.narrow[v];
        now_.kinds.half[v] = false;  // they are multiplied as float64 rows are, in planes, which is more accurate
      } else {
        pack(v, piece, kinds);
      }
    }
    const std::size_t first = batches[0].first;
    for (std::size_t i = first; i < first + count; ++i) {
      const double weight = weights.empty() ? 1 : weights[i];
      now_.weight += weight;
      if (!to_head) now_.block_weight += weight;
    }
    now_.slots += count;
    now_.fill += count;
    for (Batch& batch : batches) batch.first += count, batch.count -= count;
    if (!to_head && now_.fill == depth()) flush();
  }
}

// float16 rows of all views, none of which is shifted, are copied as they are, until others come.
void Accumulator::prepare_planes(const Kinds& kinds) {
  const bool alone = are_halves_alone(kinds);
  if (now_.fill && now_.halves_alone && !alone)
    split_halves({ticket(), schedule_.groups(), now_.fill, block_.packed(), planes_.as<std::uint32_t>()}, stream_);
  now_.halves_alone = alone && (now_.fill == 0 || now_.halves_alone);
}

void Accumulator::pack(std::size_t view, const Batch& rows, const Kinds& kinds) {
  const std::size_t group = schedule_.first_group(view), groups = schedule_.first_group(view + 1) - group;
  if (now_.products == Products::f32 && now_.kinds.narrow[view] && !kinds.narrow[view]) {  // from here on, all planes
    if (now_.fill)
      blank_slots({ticket(), group, groups, 0, now_.fill, 1, kPlanes - 1, block_.packed(), planes_.as<std::uint32_t>()}, now_.products,
                  stream_);
    now_.kinds.narrow[view] = false;
  }
  now_.kinds.half[view] = now_.kinds.half[view] && kinds.half[view];
  Pack job;
  job.batch = rows;
  job.ticket = ticket();
  job.slot = now_.fill;
  job.group = group;
  job.columns = columns();
  job.shift = shift_.as<double>();
  job.packed = block_.packed();
  job.planes = planes_.as<std::uint32_t>();
  job.strip_sums = block_.strip_sums();
  job.strip_squares = block_.strip_squares();
  job.narrow = now_.kinds.narrow[view];
  job.unmoved = is_unmoved(view);
  job.halves = halves_.as<std::uint32_t>();
  job.half = now_.kinds.half[view];
  job.alone = now_.halves_alone;
  pack_rows(job, now_.products, stream_);
}

void Accumulator::settle() {
  const std::size_t rows = now_.fill;
  choose_shift({ticket(), head_.as<double>(), head_roots_.as<double>(), rows, columns(), now_.products, now_.products == Products::f32,
                shift_.as<double>()},
               stream_);
  report_shifts();
  std::vector<Batch> batches;
  const auto size = static_cast<std::ptrdiff_t>(sizeof(double));
  for (std::size_t v = 0; v < views_.size(); ++v) {
    Batch batch;
    batch.rows = {reinterpret_cast<const unsigned char*>(head_.as<double>() + first_column(v)),
                  rows,
                  views_[v].width,
                  static_cast<std::ptrdiff_t>(columns()) * size,
                  size,
                  DType::f64};
    batch.count = rows;
    batch.roots = head_roots_.as<double>();
    batches.push_back(batch);
  }
  // These rows are counted already.
  const Counters counted = now_;
  now_.settled = true;
  now_.fill = 0;
  append(batches, counted.kinds, {}, false);
  now_.slots = counted.slots;
  now_.weight = counted.weight;
  now_.block_weight = counted.weight * static_cast<double>(now_.fill) / static_cast<double>(rows);
}

void Accumulator::report_shifts() {
  for (std::size_t v = 0; v < views_.size(); ++v)
    report_shift({ticket(), shift_.as<double>() + first_column(v), first_column(v + 1) - first_column(v), refused_ + 1 + v}, stream_);
}

Product Accumulator::product_of(std::size_t first, std::size_t last, double* target) const {
  Product product;
  product.ticket = ticket();
  product.first_tile = plan_.first_task[first];
  product.tasks = device_tasks_.as<Task>() + product.first_tile;
  product.count = plan_.first_task[last] - product.first_tile;
  product.units = device_units_.as<Unit>() + plan_.first_unit[first];
  product.unit_count = plan_.first_unit[last] - plan_.first_unit[first];
  product.splits = splits_;
  product.part = depth() / splits_;
  product.rows = now_.fill;
  product.packed = block_.packed();
  product.planes = planes_.as<std::uint32_t>();
  product.halves = halves_.as<std::uint32_t>();
  product.target = target;
  product.parts = parts_.as<double>();
  return product;
}

void Accumulator::flush() {
  multiply(product_of(0, pairs_.size(), state_->as<double>()), now_.products, options_.ladder, stream_);
  add_columns({ticket(), block_.strip_sums(), block_.strip_squares(), (now_.fill + kStrip - 1) / kStrip, columns(), sums_.as<double>(),
               sums_.as<double>() + columns(), planes_.as<std::uint32_t>()},
              stream_);
  now_.rounding += block_variance(static_cast<double>(now_.fill), now_.block_weight, now_.weight);
  now_.fill = 0;
  now_.block_weight = 0;
  now_.kinds = every_kind(true);
}

// The model of cpu/accumulator.cpp: chains of multiply-adds in the product type, then one addition in float64 a block. What tensor cores do
// beyond it (they truncate) shows on the diagonal, and is measured there (docs/cuda.md).
double Accumulator::block_variance(double rows, double weight, double total) const {
  if (!(rows > 0)) return 0;
  const bool narrow = now_.products == Products::f32;
  const double unit = narrow ? kUnit32 : kUnit64;
  const double part = std::min(rows, static_cast<double>(depth() / splits_)), chain = narrow ? std::min(part, kChain32) : part;
  double variance = (square(0.3 * unit) * chain + square(0.6 * unit) / chain) * square(weight) * (chain / rows);
  // Sums of chains are added in float32; a sum that grows is rounded with a third of the variance of its end. Of one plane, or of several.
  const double settled = std::min(part, static_cast<double>(kSettleWide));
  const double sums = std::max(part / static_cast<double>(kPromoteNarrow) * part, settled / static_cast<double>(kPromoteWide) * settled);
  if (narrow) variance += square(0.3 * unit) * (sums / 3) * square(weight) / rows;
  return variance + square(0.5 * kUnit64 * total);
}

}  // namespace streamcca::cuda
