// Merging, saving and restoring moments.
#include <algorithm>

#include "core/error.h"
#include "cpu/accumulator.h"
#include "cpu/dispatch.h"

namespace streamcca {
namespace {

constexpr double kUnit64 = 1.1102230246251565e-16;  // 2^-53

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

std::vector<std::vector<double>> difference(const std::vector<std::vector<double>>& a, const std::vector<std::vector<double>>& b) {
  std::vector<std::vector<double>> result = a;
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
  const std::lock_guard<std::mutex> lock(mutex_);
  check_process();
  if (part.rows_ == 0) {
    skipped_ += part.skipped_;
    return;
  }
  if (rows_ == 0) {
    part.skipped_ += skipped_;
    return assign(part);
  }
  settle();
  flush();
  part.settle();
  part.flush();
  // The lighter side moves to the heavier one's shift: its rows are few, so the squares of the move are small.
  if (weight_ >= part.weight_) {
    part.store_->rebase(difference(part.shift_, shift_), part.weight_, threads_);
  } else {
    store_->rebase(difference(shift_, part.shift_), weight_, threads_);
    shift_ = part.shift_;
  }
  std::vector<double> buffer;
  for (std::size_t v = 0; v < views_.size(); ++v) {
    buffer.resize(views_[v].width);
    part.store_->read_sums(v, false, buffer.data());
    store_->add_sums(v, buffer.data());
  }
  for (std::size_t p = 0; p < pairs_.size(); ++p) {
    buffer.resize(views_[pairs_[p].row_view].width * views_[pairs_[p].col_view].width);
    part.store_->read_pair(p, false, buffer.data(), threads_);
    store_->add_pair(p, buffer.data(), threads_);
  }
  rows_ += part.rows_;
  skipped_ += part.skipped_;
  weight_ += part.weight_;
  // Rebase and addition: a handful of float64 roundings of the total.
  rounding_.variance += part.rounding_.variance + 4 * kUnit64 * kUnit64 * weight_ * weight_;
  rounding_.systematic += part.rounding_.systematic;
}

State Accumulator::save() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  State state;
  state.products = products_;
  state.started = started_;
  state.settled = settled_;
  state.rows = rows_;
  state.skipped = skipped_;
  state.weight = weight_;
  state.block_weight = block_weight_;
  state.rounding = rounding_;
  state.shift = shift_;
  state.pending = head_.values;
  state.roots = head_.roots;
  if (!settled_) return state;

  state.roots = store_->pending_roots();
  for (std::size_t v = 0; v < views_.size(); ++v) {
    state.sums.emplace_back(views_[v].width);
    store_->read_sums(v, false, state.sums[v].data());
    state.pending[v].resize(state.roots.size() * views_[v].width);
    store_->read_pending(v, state.pending[v].data());
  }
  for (std::size_t p = 0; p < pairs_.size(); ++p) {
    const std::size_t width = views_[pairs_[p].col_view].width;
    std::vector<double> full(views_[pairs_[p].row_view].width * width);
    store_->read_pair(p, false, full.data(), threads_);
    state.moments.push_back(pairs_[p].with_itself() ? pack_upper(full, width) : std::move(full));
  }
  return state;
}

void Accumulator::restore(const State& state) {
  std::unique_ptr<MomentStore> store;
  if (state.started) {
    store = MomentStore::create(views_, pairs_, state.products, active_kernels());
    store->reserve();
  }
  if (state.settled) {
    std::vector<Rows> pending;
    for (std::size_t v = 0; v < views_.size(); ++v) {
      store->add_sums(v, state.sums[v].data());
      const auto size = static_cast<std::ptrdiff_t>(sizeof(double));
      pending.push_back({reinterpret_cast<const unsigned char*>(state.pending[v].data()), state.roots.size(), views_[v].width,
                         static_cast<std::ptrdiff_t>(views_[v].width) * size, size, DType::f64});
    }
    store->restore_pending(pending, state.roots);
    for (std::size_t p = 0; p < pairs_.size(); ++p) {
      const bool packed = pairs_[p].with_itself();
      const std::vector<double> unpacked =
          packed ? unpack_upper(state.moments[p], views_[pairs_[p].col_view].width) : std::vector<double>();
      store->add_pair(p, packed ? unpacked.data() : state.moments[p].data(), threads_);
    }
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  started_ = state.started;
  settled_ = state.settled;
  products_ = state.products;
  store_ = std::move(store);
  head_ = Head{std::vector<std::vector<double>>(views_.size()), {}};
  if (!settled_) head_ = Head{state.pending, state.roots};
  shift_ = state.shift;
  rows_ = state.rows;
  skipped_ = state.skipped;
  weight_ = state.weight;
  block_weight_ = state.block_weight;
  rounding_ = state.rounding;
}

}  // namespace streamcca
