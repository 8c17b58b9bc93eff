#include "cpu/moment_store.h"

#include <unistd.h>

#include <algorithm>

#include "core/error.h"
#include "cpu/matrix_store.h"
#include "cpu/threads.h"
#include "cpu/typed_store.h"

namespace streamcca {
namespace {

std::size_t second_level_cache() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (bytes > 0) return static_cast<std::size_t>(bytes);
#endif
  return std::size_t{1} << 20;
}

// Whether each thread has packed blocks of its own, of so many bytes. With four times the second-level cache that was 2 to 5 %
// slower than one block for all, where the cores share the next level (docs/performance.md).
bool is_relayed(std::size_t block_bytes) { return block_bytes <= 2 * second_level_cache(); }

template <class T>
Layout layout_of(const std::vector<View>& views, const ProductKernels<T>& kernels) {
  const Geometry geometry{kernels.lanes, kernels.vectors * kernels.lanes, kernels.slice, kGroup<T>, 16, 8};
  const std::size_t depth = kernels.depth, bytes = Schedule::groups(views, geometry) * depth * kLineBytes;
  return {geometry, depth, blocks_at_once(bytes), is_relayed(bytes)};
}

}  // namespace

std::size_t blocks_at_once(std::size_t block_bytes) {
  constexpr std::size_t most = 16;
  return std::clamp(second_level_cache() / 2 / std::max<std::size_t>(block_bytes, 1), std::size_t{1}, most);
}

MomentStore::MomentStore(const std::vector<View>& views, const std::vector<Pair>& pairs, const Layout& layout)
    : views_(views),
      pairs_(pairs),
      schedule_(views, pairs, layout.geometry),
      depth_(layout.depth),
      blocks_(layout.blocks),
      relay_(layout.relay),
      roots_(depth_ * blocks_, 1.0),
      sums_(schedule_.groups() * layout.geometry.group),
      squares_(sums_.size()),
      block_sums_(sums_.size()),
      block_squares_(sums_.size()) {}

std::size_t MomentStore::rows_to_append(std::size_t available) const {
  const std::size_t full = std::min((fill_ + available) / depth_, blocks_);
  return full ? full * depth_ - fill_ : available;
}

// As many as one thread surely does between two looks at Ctrl-C.
std::size_t MomentStore::blocks_to_add(std::size_t available_rows, int threads) const {
  constexpr double seconds = 0.1;
  const std::size_t blocks = available_rows / depth_;
  if (!relay_ || fill_ || blocks < 2 || thread_count(threads) == 1) return 0;
  const double products = static_cast<double>(schedule_.state_size() * depth_);
  return std::min(blocks, std::max(std::size_t{16}, static_cast<std::size_t>(seconds * kProductsPerSecond / products)));
}

bool MomentStore::likes_narrow_rows(const std::vector<View>& views, const std::vector<Pair>& pairs, Products products,
                                    const KernelTable& kernels) {
  return products == Products::f32 && (kernels.narrow || on_matrix_unit(views, pairs, products, kernels));
}

bool MomentStore::on_matrix_unit(const std::vector<View>& views, const std::vector<Pair>& pairs, Products products,
                                 const KernelTable& kernels) {
  return products == Products::f32 && kernels.matrix && MatrixStore::products_per_value(views, pairs) >= kernels.matrix_pays_from;
}

void MomentStore::append_all(const std::vector<Rows>& rows, std::size_t count, const double* roots, int threads) {
  for (std::size_t done = 0; done < count;) {
    const std::size_t piece = rows_to_append(count - done);
    append(rows, done, piece, roots + done, threads);
    done += piece;
    if (has_full_block()) flush(threads);
  }
}

std::unique_ptr<MomentStore> MomentStore::create(const std::vector<View>& views, const std::vector<Pair>& pairs, Products products,
                                                 const KernelTable& kernels) {
  if (products == Products::f64)
    return std::make_unique<TypedStore<double>>(views, pairs, layout_of(views, kernels.f64), kernels.f64, nullptr);
  if (on_matrix_unit(views, pairs, products, kernels)) return std::make_unique<MatrixStore>(views, pairs, kernels);
  return std::make_unique<TypedStore<float>>(views, pairs, layout_of(views, kernels.f32), kernels.f32, kernels.narrow);
}

std::size_t MomentStore::bytes(const std::vector<View>& views, const std::vector<Pair>& pairs, Products products,
                               const KernelTable& kernels) {
  if (products == Products::f64) return TypedStore<double>::bytes(views, pairs, layout_of(views, kernels.f64), false);
  if (on_matrix_unit(views, pairs, products, kernels)) return MatrixStore::bytes(views, pairs);
  return TypedStore<float>::bytes(views, pairs, layout_of(views, kernels.f32), kernels.narrow != nullptr);
}

void MomentStore::reserve() { state_.values.resize(schedule_.state_size()); }

void MomentStore::fill_if_blank() {
  reserve();
  if (state_.blank) std::fill(state_.values.begin(), state_.values.end(), 0.0);
  state_.blank = false;
}

void MomentStore::clear() {
  fill_ = 0;
  state_.blank = true;
  for (AlignedArray<double>* values : {&sums_, &squares_, &block_sums_, &block_squares_}) std::fill(values->begin(), values->end(), 0.0);
}

template <class Visit>
void MomentStore::for_each_entry(std::size_t pair, int threads, Visit visit) {
  const auto first = static_cast<std::ptrdiff_t>(schedule_.first_strip(pair));
  const auto last = static_cast<std::ptrdiff_t>(schedule_.last_strip(pair));
#pragma omp parallel for schedule(dynamic) num_threads(thread_count(threads))
  for (std::ptrdiff_t s = first; s < last; ++s) {
    const Strip& strip = schedule_.strips()[static_cast<std::size_t>(s)];
    schedule_.for_each_tile(strip, [&](std::size_t slice, Tile tile, std::size_t offset) {
      double* values = state_.values.data() + offset;
      for_each_entry_of(strip, slice, tile, [&](std::size_t row, std::size_t column, std::size_t i) { visit(row, column, values[i]); });
    });
  }
}

void MomentStore::read_columns(std::size_t view, bool with_pending, double* sums, double* squares) const {
  const std::size_t first = schedule_.first_group(view) * schedule_.geometry().group;
  for (std::size_t c = 0; c < views_[view].width; ++c) {
    sums[c] = sums_[first + c] + (with_pending ? block_sums_[first + c] : 0.0);
    squares[c] = squares_[first + c] + (with_pending ? block_squares_[first + c] : 0.0);
  }
}

void MomentStore::add_columns(std::size_t view, const double* sums, const double* squares) {
  const std::size_t first = schedule_.first_group(view) * schedule_.geometry().group;
  for (std::size_t c = 0; c < views_[view].width; ++c) {
    sums_[first + c] += sums[c];
    squares_[first + c] += squares[c];
  }
}

void MomentStore::add_pair(std::size_t pair, const double* moments, int threads) {
  fill_if_blank();
  const std::size_t width = views_[pairs_[pair].col_view].width;
  for_each_entry(pair, threads, [&](std::size_t row, std::size_t column, double& value) { value += moments[row * width + column]; });
}

std::vector<double> MomentStore::pending_roots() const { return {roots_.begin(), roots_.begin() + static_cast<std::ptrdiff_t>(fill_)}; }

void MomentStore::rebase(const PerView& delta, double weight, int threads) {
  fill_if_blank();
  const auto column = [this](std::size_t view) { return schedule_.first_group(view) * schedule_.geometry().group; };
  for (std::size_t pair = 0; pair < pairs_.size(); ++pair) {
    const double* row_delta = delta[pairs_[pair].row_view].data();
    const double* col_delta = delta[pairs_[pair].col_view].data();
    const double* row_sums = sums_.data() + column(pairs_[pair].row_view);
    const double* col_sums = sums_.data() + column(pairs_[pair].col_view);
    for_each_entry(pair, threads, [&](std::size_t r, std::size_t c, double& value) {
      value += row_delta[r] * (col_sums[c] + weight * col_delta[c]) + row_sums[r] * col_delta[c];
    });
  }
  for (std::size_t view = 0; view < views_.size(); ++view) {
    double* sums = sums_.data() + column(view);
    double* squares = squares_.data() + column(view);
    for (std::size_t c = 0; c < views_[view].width; ++c) {
      const double d = delta[view][c];
      squares[c] += d * (sums[c] + weight * d) + sums[c] * d;
      sums[c] += weight * d;
    }
  }
}

}  // namespace streamcca
