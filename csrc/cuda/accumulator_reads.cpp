// What waits for the device: counts, snapshots, matrices.
#include <algorithm>
#include <sstream>
#include <utility>

#include "core/error.h"
#include "core/units.h"
#include "cuda/accumulator.h"

namespace streamcca::cuda {

// Waits, and looks whether a batch was refused; then all is as it was before that batch.
void Accumulator::resolve() {
  if (!state_) return;
  const OnDevice on(options_.device);
  use(nullptr);  // the stream of the last batch may be gone by now; what it did is waited for by an event
  copy(status_copy_, status_.as<void>(), sizeof(Status), stream_);
  wait_for(stream_);
  seen_ = *status_copy_;
  *refused_ = 0;
  if (seen_.refused_batch == Status{}.refused_batch) {
    journal_.clear();
    return;
  }
  const Status refused = seen_;
  const auto at = std::find_if(journal_.begin(), journal_.end(), [&](const auto& entry) { return entry.first == refused.refused_batch; });
  const std::size_t lost = static_cast<std::size_t>(journal_.end() - at);
  now_ = at->second;
  journal_.clear();
  Status mended;
  mended.skipped = refused.skipped;
  mended.skipped_weight = refused.skipped_weight;
  seen_ = mended;
  *status_copy_ = mended;
  copy(status_.as<void>(), status_copy_, sizeof(Status), stream_);
  wait_for(stream_);

  std::ostringstream text;
  text << "view '" << views_[refused.where & ((1u << kViewBits) - 1)].name << "', row " << (refused.where >> kViewBits)
       << " of a batch (after " << now_.slots << " rows counted before): ";
  if (refused.too_large) {
    text << "a value is too large for its square to be summed in " << (now_.products == Products::f32 ? "float32" : "float64")
         << "; rescale the view, or use precision='float64'";
  } else {
    text << "a value is not finite, expected finite numbers; mend the rows, or pass nonfinite='skip' to leave such rows out or "
            "nonfinite='propagate' to let them through";
  }
  text << " (the device works behind: this batch and the " << lost - 1 << " after it were not counted)";
  throw Error(refused.too_large ? ErrorKind::value : ErrorKind::nonfinite, text.str());
}

void Accumulator::reset() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (state_) {
    const OnDevice on(options_.device);
    use(nullptr);  // as in resolve()
    wait_for(stream_);
    *status_copy_ = seen_ = Status{};
    copy(status_.as<void>(), status_copy_, sizeof(Status), stream_);
    wait_for(stream_);
    *refused_ = 0;
  }
  journal_.clear();
  now_ = Counters{};
}

std::uint64_t Accumulator::rows() {
  const std::lock_guard<std::mutex> lock(mutex_);
  resolve();
  return now_.slots - seen_.skipped;
}

std::uint64_t Accumulator::skipped() {
  const std::lock_guard<std::mutex> lock(mutex_);
  resolve();
  return seen_.skipped;
}

double Accumulator::weight() {
  const std::lock_guard<std::mutex> lock(mutex_);
  resolve();
  return now_.weight - seen_.skipped_weight;
}

bool Accumulator::started() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return now_.started;
}

Products Accumulator::products() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return now_.products;
}

std::pair<double*, Buffer> Accumulator::tiles_with_pending(std::size_t pair) {
  const std::size_t first = plan_.first_task[pair], count = plan_.first_task[pair + 1] - first;
  double* own = state_->as<double>() + first * kTileSize;
  if (now_.fill == 0) return {own, Buffer()};
  Buffer scratch(count * kTileSize * sizeof(double), stream_);
  copy(scratch.as<void>(), own, scratch.bytes(), stream_);
  const std::size_t tail = (now_.fill + kBlankRows - 1) / kBlankRows * kBlankRows - now_.fill;
  for (std::size_t p = 0; p < kPlaneSets && tail; ++p) {
    if (block_.planes() >> p & 1)
      blank_slots({ticket(), 0, schedule_.groups(), now_.fill, tail, p, 1, block_.packed()}, now_.products, stream_);
  }
  multiply(product_of(pair, pair + 1, scratch.as<double>()), now_.products, options_.ladder, stream_);
  double* tiles = scratch.as<double>();
  return {tiles, std::move(scratch)};
}

Buffer Accumulator::columns_with_pending() {
  Buffer sums(sums_.bytes(), stream_);
  copy(sums.as<void>(), sums_.as<void>(), sums.bytes(), stream_);
  add_columns({ticket(), block_.strip_sums(), block_.strip_squares(), (now_.fill + kStrip - 1) / kStrip, columns(), sums.as<double>(),
               sums.as<double>() + columns(), nullptr},
              stream_);
  return sums;
}

std::vector<double> Accumulator::fetch(const double* from, std::size_t count) const {
  std::vector<double> values(count);
  copy(values.data(), from, count * sizeof(double), stream_);
  wait_for(stream_);
  return values;
}

void Accumulator::check_settled(const char* what) const {
  if (now_.settled) return;
  throw Error(ErrorKind::value, std::string(what) + " on the device: " + std::to_string(now_.slots) + " rows so far, expected at least " +
                                    std::to_string(kHead) + ", the first of which fix the shift; use the methods of Moments, or add rows");
}

bool Accumulator::settled() {
  const std::lock_guard<std::mutex> lock(mutex_);
  resolve();
  return now_.settled;
}

std::vector<double> Accumulator::mean(std::size_t view) {
  const std::lock_guard<std::mutex> lock(mutex_);
  resolve();
  check_settled("mean");
  const OnDevice on(options_.device);
  const Recorded recorded(*this);
  const Buffer columns = columns_with_pending();
  const std::size_t first = first_column(view), width = views_[view].width;
  std::vector<double> mean = fetch(shift_.as<double>() + first, width);
  const std::vector<double> sums = fetch(columns.as<double>() + first, width);
  for (std::size_t c = 0; c < width; ++c) mean[c] += sums[c] / (now_.weight - seen_.skipped_weight);
  return mean;
}

Uncertainty Accumulator::uncertainty(std::size_t pair, double ddof) {
  const std::lock_guard<std::mutex> lock(mutex_);
  resolve();
  check_settled("rounding");
  const OnDevice on(options_.device);
  const Recorded recorded(*this);
  const std::size_t view = pairs_[pair].row_view, width = views_[view].width, across = (width + kTile - 1) / kTile;
  const Buffer sums = columns_with_pending();
  const std::vector<double> squares = fetch(sums.as<double>() + columns() + first_column(view), width);
  const auto [tiles, scratch] = tiles_with_pending(pair);
  std::vector<double> diagonal;
  for (std::size_t t = 0; t < across; ++t) {
    const std::vector<double> tile = fetch(tiles + plan_.places[pair][t * across + t] * kTileSize, kTileSize);
    for (std::size_t c = 0; c < kTile && diagonal.size() < width; ++c) diagonal.push_back(tile[c * (kTile + 1)]);
  }
  const double weight = now_.weight - seen_.skipped_weight;
  const double rounding = now_.rounding + block_variance(static_cast<double>(now_.fill), now_.block_weight, now_.weight);
  const double step = now_.products == Products::f32 ? kSmallestStep32 : kSmallestStep64;
  return observe_rounding({diagonal.data(), 1, squares.data(), width, rounding / (weight * weight), weight - ddof,
                           static_cast<double>(now_.slots - seen_.skipped), step, now_.row_unit});
}

Snapshot Accumulator::save() {
  const std::lock_guard<std::mutex> lock(mutex_);
  resolve();
  Snapshot s;
  s.products = now_.products;
  s.started = now_.started;
  s.settled = now_.settled;
  s.rows = now_.slots - seen_.skipped;
  s.skipped = seen_.skipped;
  s.weight = now_.weight - seen_.skipped_weight;
  s.row_unit = now_.row_unit;
  s.rounding = now_.rounding;
  s.pending.resize(views_.size());
  if (!now_.started) return s;
  const OnDevice on(options_.device);
  const Recorded recorded(*this);
  if (!now_.settled) {
    const std::vector<double> head = fetch(head_.as<double>(), now_.fill * columns()), roots = fetch(head_roots_.as<double>(), now_.fill);
    for (std::size_t k = 0; k < now_.fill; ++k) {
      if (!(roots[k] > 0)) continue;
      s.roots.push_back(roots[k]);
      for (std::size_t v = 0; v < views_.size(); ++v) {
        const double* row = head.data() + k * columns() + first_column(v);
        s.pending[v].insert(s.pending[v].end(), row, row + views_[v].width);
      }
    }
    return s;
  }

  s.rounding += block_variance(static_cast<double>(now_.fill), now_.block_weight, now_.weight);
  const std::vector<double> shift = fetch(shift_.as<double>(), columns());
  const Buffer device_sums = columns_with_pending();
  const std::vector<double> sums = fetch(device_sums.as<double>(), 2 * columns());
  for (std::size_t v = 0; v < views_.size(); ++v) {
    const std::size_t width = views_[v].width;
    const auto part = [&](const std::vector<double>& all, std::size_t from) {
      const double* first = all.data() + from + first_column(v);
      return std::vector<double>(first, first + width);
    };
    s.shift.push_back(part(shift, 0));
    s.sums.push_back(part(sums, 0));
    s.squares.push_back(part(sums, columns()));
  }
  for (std::size_t p = 0; p < pairs_.size(); ++p) {
    const auto [device_tiles, scratch] = tiles_with_pending(p);
    const std::vector<double> tiles = fetch(device_tiles, (plan_.first_task[p + 1] - plan_.first_task[p]) * kTileSize);
    const std::size_t height = views_[pairs_[p].row_view].width, width = views_[pairs_[p].col_view].width;
    const std::size_t across = (width + kTile - 1) / kTile;
    std::vector<double> moments;
    moments.reserve(pairs_[p].with_itself() ? width * (width + 1) / 2 : height * width);
    for (std::size_t r = 0; r < height; ++r) {
      for (std::size_t c = pairs_[p].with_itself() ? r : 0; c < width; ++c)
        moments.push_back(tiles[plan_.places[p][r / kTile * across + c / kTile] * kTileSize + r % kTile * kTile + c % kTile]);
    }
    s.moments.push_back(std::move(moments));
  }
  return s;
}

void Accumulator::restore(const Snapshot& s) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (s.started && options_.precision != Precision::automatic && products_for({}) != s.products)
    throw Error(ErrorKind::value, "state: its products are of another type than the precision asks for");
  if (s.settled && !s.roots.empty()) throw Error(ErrorKind::value, "state: pending rows, expected moments that are finished");
  if (state_) {
    const OnDevice on(options_.device);
    use(nullptr);
    wait_for(stream_);
  }
  journal_.clear();
  const Counters before = std::exchange(now_, Counters{});
  const Status seen_before = std::exchange(seen_, Status{});
  seen_.skipped = s.skipped;
  if (options_.device < 0) options_.device = 0;
  const OnDevice on(options_.device);
  const Recorded recorded(*this);
  const auto send = [&](const std::vector<double>& values, const Buffer& to) {
    copy(to.as<void>(), values.data(), values.size() * sizeof(double), stream_);
    wait_for(stream_);
  };
  if (!s.started) {
    if (!state_) return;
    *status_copy_ = seen_;
    copy(status_.as<void>(), status_copy_, sizeof(Status), stream_);
    wait_for(stream_);
    return;
  }
  try {
    start(s.products);
  } catch (...) {  // there is no room for products of another type, say
    now_ = before;
    seen_ = seen_before;
    throw;
  }
  *status_copy_ = seen_;
  copy(status_.as<void>(), status_copy_, sizeof(Status), stream_);
  wait_for(stream_);
  *refused_ = 0;
  now_.settled = s.settled;
  now_.slots = s.rows + s.skipped;
  now_.weight = s.weight;
  now_.rounding = s.rounding;
  now_.row_unit = s.row_unit;
  if (!s.settled) {
    now_.kinds = every_kind(false);  // they are not known any more
    now_.fill = s.roots.size();
    std::vector<double> head(kHead * columns()), roots = s.roots;
    for (std::size_t v = 0; v < views_.size(); ++v) {
      const std::size_t width = views_[v].width;
      for (std::size_t k = 0; k < now_.fill; ++k)
        std::copy_n(s.pending[v].data() + k * width, width, head.data() + k * columns() + first_column(v));
    }
    roots.resize(kHead);
    send(head, head_);
    send(roots, head_roots_);
    return;
  }
  std::vector<double> shift(columns()), sums(2 * columns()), tiles(plan_.tasks.size() * kTileSize);
  for (std::size_t v = 0; v < views_.size(); ++v) {
    std::copy(s.shift[v].begin(), s.shift[v].end(), shift.begin() + static_cast<std::ptrdiff_t>(first_column(v)));
    std::copy(s.sums[v].begin(), s.sums[v].end(), sums.begin() + static_cast<std::ptrdiff_t>(first_column(v)));
    std::copy(s.squares[v].begin(), s.squares[v].end(), sums.begin() + static_cast<std::ptrdiff_t>(columns() + first_column(v)));
  }
  for (std::size_t p = 0; p < pairs_.size(); ++p) {
    const std::size_t height = views_[pairs_[p].row_view].width, width = views_[pairs_[p].col_view].width;
    const std::size_t across = (width + kTile - 1) / kTile;
    std::size_t i = 0;
    for (std::size_t r = 0; r < height; ++r) {
      for (std::size_t c = pairs_[p].with_itself() ? r : 0; c < width; ++c)
        tiles[(plan_.first_task[p] + plan_.places[p][r / kTile * across + c / kTile]) * kTileSize + r % kTile * kTile + c % kTile] =
            s.moments[p][i++];
    }
  }
  send(shift, shift_);
  send(sums, sums_);
  send(tiles, *state_);
  report_shifts();
}

SharedBuffer Accumulator::tiles() {
  const std::lock_guard<std::mutex> lock(mutex_);
  resolve();
  return state_;
}

SharedBuffer Accumulator::covariance(std::size_t pair, double ddof, Stream stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  resolve();
  check_settled("covariance");
  const OnDevice on(options_.device);
  const Recorded recorded(*this);
  give_back();
  const auto [tiles, scratch] = tiles_with_pending(pair);
  const Buffer sums = columns_with_pending();
  const Buffer places = uploads_.send(plan_.places[pair].data(), plan_.places[pair].size() * sizeof(std::uint32_t), stream_);
  const Pair& p = pairs_[pair];
  Covariance job;
  job.tiles = tiles;
  job.places = places.as<std::uint32_t>();
  job.height = views_[p.row_view].width;
  job.width = views_[p.col_view].width;
  job.tiles_across = (job.width + kTile - 1) / kTile;
  job.row_sums = sums.as<double>() + first_column(p.row_view);
  job.col_sums = sums.as<double>() + first_column(p.col_view);
  job.weight = now_.weight - seen_.skipped_weight;
  job.ddof = ddof;
  auto out = std::make_shared<Buffer>(job.height * job.width * sizeof(double), stream_);
  job.out = out->as<double>();
  write_covariance(job, stream_);
  last_->record(stream_);
  if (stream != stream_) last_->hold_back(stream);
  out->follow(nullptr);
  return out;
}

void Accumulator::hold_back(Stream stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (last_ && stream != stream_) last_->hold_back(stream);
}

}  // namespace streamcca::cuda
