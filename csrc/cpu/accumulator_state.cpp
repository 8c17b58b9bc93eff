// Merging, saving and restoring moments.
#include <algorithm>

#include "core/error.h"
#include "core/units.h"
#include "cpu/accumulator.h"
#include "cpu/accumulator_detail.h"

namespace streamcca {
namespace {

std::size_t packed_size(std::size_t width) { return width * (width + 1) / 2; }

std::vector<double> pack_upper(const std::vector<double>& full, std::size_t width) {
  std::vector<double> packed;
  packed.reserve(packed_size(width));
  for (std::size_t r = 0; r < width; ++r) {
    const auto row = full.begin() + static_cast<std::ptrdiff_t>(r * width);
    packed.insert(packed.end(), row + static_cast<std::ptrdiff_t>(r), row + static_cast<std::ptrdiff_t>(width));
  }
  return packed;
}

std::vector<double> unpack_upper(const std::vector<double>& packed, std::size_t width) {
  std::vector<double> full(width * width);
  std::size_t i = 0;
  for (std::size_t r = 0; r < width; ++r) {
    for (std::size_t c = r; c < width; ++c) full[r * width + c] = full[c * width + r] = packed[i++];
  }
  return full;
}

PerView difference(const PerView& a, const PerView& b) {
  PerView result = a;
  for (std::size_t v = 0; v < a.size(); ++v) {
    for (std::size_t c = 0; c < a[v].size(); ++c) result[v][c] -= b[v][c];
  }
  return result;
}

bool same_views(const Accumulator& a, const Accumulator& b) {
  return std::equal(a.views().begin(), a.views().end(), b.views().begin(), b.views().end(),
                    [](const View& x, const View& y) { return x.name == y.name && x.width == y.width; }) &&
         std::equal(a.pairs().begin(), a.pairs().end(), b.pairs().begin(), b.pairs().end(),
                    [](const Pair& x, const Pair& y) { return x.row_view == y.row_view && x.col_view == y.col_view; });
}

}  // namespace

void Accumulator::merge(const Accumulator& other) {
  if (!same_views(*this, other)) {
    throw Error(ErrorKind::value, "merge: the other moments have other views or pairs; expected the same names, widths, order and pairs");
  }
  Accumulator part(other);  // also what makes m.merge(m) and concurrent merges both ways safe
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const Busy busy(&busy_);
  check_process();
  if (part.rows_ == 0) {
    skipped_ += part.skipped_;
    return;
  }
  const bool same_products = precision_ == Precision::automatic || products_for({}) == part.products_;
  if (rows_ == 0 && same_products) {
    const std::uint64_t skipped = skipped_ + part.skipped_;
    assign(part);
    skipped_ = skipped;
    return;
  }
  if (!started_) start(products_for({}));

  // Everything that allocates comes first, so that a merge that fails has changed nothing.
  part.settle();
  part.flush();
  const bool keep_own_shift = weight_ >= part.weight_;
  PerView own_shift = shift_;
  if (!settled_) choose_shift_of_head(&own_shift);
  const PerView delta = keep_own_shift ? difference(part.shift_, own_shift) : difference(own_shift, part.shift_);
  std::size_t largest = 1;
  for (const View& view : views_) largest = std::max(largest, view.width);
  std::vector<double> sums(largest), squares(largest);
  for (const Pair& pair : pairs_) largest = std::max(largest, views_[pair.row_view].width * views_[pair.col_view].width);
  std::vector<double> moments(largest);

  settle();
  flush();
  // The lighter side moves to the heavier one's shift: its rows are few, so the squares of the move are small.
  if (keep_own_shift) {
    part.store_->rebase(delta, part.weight_, threads_);
  } else {
    store_->rebase(delta, weight_, threads_);
    shift_ = std::move(part.shift_);
    store_->set_shift(shift_);
  }
  for (std::size_t v = 0; v < views_.size(); ++v) {
    part.store_->read_columns(v, false, sums.data(), squares.data());
    store_->add_columns(v, sums.data(), squares.data());
  }
  for (std::size_t p = 0; p < pairs_.size(); ++p) {
    part.store_->read_pair(p, false, moments.data(), threads_);
    store_->add_pair(p, moments.data(), threads_);
  }
  rows_ += part.rows_;
  skipped_ += part.skipped_;
  weight_ += part.weight_;
  row_unit_ = std::min(row_unit_, part.row_unit_);
  // Rebase and addition: a handful of float64 roundings of the total.
  rounding_ += part.rounding_ + 4 * kUnit64 * kUnit64 * weight_ * weight_;
}

State Accumulator::save() const {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  State state;
  state.products = products_;
  state.started = started_;
  state.settled = settled_;
  state.rows = rows_;
  state.skipped = skipped_;
  state.weight = weight_;
  state.block_rows = block_rows_;
  state.block_weight = block_weight_;
  state.rounding = rounding_;
  state.row_unit = row_unit_;
  state.pending = head_.values;
  state.roots = head_.roots;
  if (!settled_) return state;

  state.shift = shift_;
  state.roots = store_->pending_roots();
  for (std::size_t v = 0; v < views_.size(); ++v) {
    state.sums.emplace_back(views_[v].width);
    state.squares.emplace_back(views_[v].width);
    store_->read_columns(v, false, state.sums[v].data(), state.squares[v].data());
    state.pending[v].resize(state.roots.size() * views_[v].width);
    store_->read_pending(v, state.pending[v].data());
  }
  for (std::size_t p = 0; p < pairs_.size(); ++p) {
    const std::size_t width = views_[pairs_[p].col_view].width;
    std::vector<double> full(views_[pairs_[p].row_view].width * width);
    store_->read_pair(p, false, full.data(), reading_threads(full.size()));
    state.moments.push_back(pairs_[p].with_itself() ? pack_upper(full, width) : std::move(full));
  }
  return state;
}

void Accumulator::restore(const State& state) {
  if (state.started && precision_ != Precision::automatic && products_for({}) != state.products) {
    throw Error(ErrorKind::value, "state: its products are of another type than the precision asks for");
  }
  Accumulator fresh(*this, Empty{});
  if (state.started) fresh.start(state.products);
  if (state.settled) {
    fresh.store_->restore_pending(borrow_all(state.pending, views_, state.roots.size()), state.roots, threads_);
    for (std::size_t v = 0; v < views_.size(); ++v) fresh.store_->add_columns(v, state.sums[v].data(), state.squares[v].data());
    for (std::size_t p = 0; p < pairs_.size(); ++p) {
      const std::size_t width = views_[pairs_[p].col_view].width;
      const std::vector<double> unpacked = pairs_[p].with_itself() ? unpack_upper(state.moments[p], width) : std::vector<double>();
      fresh.store_->add_pair(p, unpacked.empty() ? state.moments[p].data() : unpacked.data(),
                             reading_threads(views_[pairs_[p].row_view].width * width));
    }
    fresh.store_->set_shift(state.shift);
    fresh.shift_ = state.shift;
    fresh.head_ = Head{PerView(views_.size()), {}};
    fresh.settled_ = true;
  } else if (state.started) {
    for (std::size_t v = 0; v < views_.size(); ++v) fresh.head_.values[v].assign(state.pending[v].begin(), state.pending[v].end());
    fresh.head_.roots.assign(state.roots.begin(), state.roots.end());
  }
  fresh.rows_ = state.rows;
  fresh.skipped_ = state.skipped;
  fresh.weight_ = state.weight;
  fresh.block_rows_ = state.block_rows;
  fresh.block_weight_ = state.block_weight;
  fresh.rounding_ = state.rounding;
  if (state.started && fresh.block_rows_ >= fresh.accounted_rows()) fresh.close_block();  // saved at a level with longer blocks
  fresh.row_unit_ = state.row_unit;
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const Busy busy(&busy_);
  assign(fresh);
}

}  // namespace streamcca
