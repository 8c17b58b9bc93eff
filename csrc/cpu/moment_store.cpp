#include "cpu/moment_store.h"

#include <algorithm>

#include "core/error.h"
#include "cpu/threads.h"

namespace streamcca {
namespace {

// What one thread surely does in a second, for the choice of a team.
constexpr double kProductsPerSecond = 2e10;
constexpr double kElementsPackedPerSecond = 1e9;

template <class T>
Geometry geometry_of(const ProductKernels<T>& kernels) {
  return {kernels.lanes, kernels.panel, kernels.slice};
}

PackSource source_of(const Rows& rows, std::size_t first, std::size_t count) {
  return {rows.row(first), rows.row_stride, rows.col_stride, count, rows.cols};
}

template <class T>
class TypedStore final : public MomentStore {
 public:
  TypedStore(const std::vector<View>& views, const std::vector<Pair>& pairs, Products products, const ProductKernels<T>& kernels)
      : MomentStore(views, pairs, geometry_of(kernels), block_depth(products)),
        kernels_(kernels),
        block_(schedule_.panels() * panel_stride()),
        shift_(schedule_.panels() * kernels.panel) {
    if (kernels.slice * kernels.panel > kLargestTile) throw Error(ErrorKind::isa, "tile larger than its buffer");
  }

  static std::size_t bytes(const std::vector<View>& views, const std::vector<Pair>& pairs, Products products,
                           const ProductKernels<T>& kernels) {
    const Geometry geometry = geometry_of(kernels);
    const std::size_t block = Schedule::panels(views, geometry) * kernels.panel * (block_depth(products) + kPadRows);
    return Schedule::state_size(views, pairs, geometry) * sizeof(double) + block * sizeof(T);
  }

  std::unique_ptr<MomentStore> clone() const override { return std::make_unique<TypedStore>(*this); }

  void set_shift(const PerView& shift) override {
    for (std::size_t view = 0; view < views_.size(); ++view) {
      T* out = shift_.data() + schedule_.first_panel(view) * kernels_.panel;
      for (std::size_t c = 0; c < views_[view].width; ++c) out[c] = static_cast<T>(shift[view][c]);
    }
  }

  void append(const std::vector<Rows>& rows, std::size_t first, std::size_t count, const double* roots, int threads) override {
    const double elements = static_cast<double>(count) * static_cast<double>(schedule_.panels() * kernels_.panel);
    team_.run(elements / kElementsPackedPerSecond, threads, [&](int team) {
      for (std::size_t view = 0; view < views_.size(); ++view) append_view(view, rows[view], first, count, roots, team);
    });
    for (std::size_t k = 0; k < count; ++k) roots_[fill_ + k] = roots ? roots[k] : 1.0;
    weighted_ = weighted_ || roots != nullptr;
    fill_ += count;
  }

  void flush(int threads) override {
    if (fill_ == 0) return;
    reserve();
    const double products = static_cast<double>(schedule_.state_size()) * static_cast<double>(fill_);
    team_.run(products / kProductsPerSecond, threads, [this](int team) { add_block(team); });
    fill_ = 0;
    weighted_ = false;
  }

  void read_columns(std::size_t view, bool with_pending, double* sums, double* squares) const override {
    const std::size_t first = schedule_.first_panel(view) * kernels_.panel;
    std::copy_n(sums_.data() + first, views_[view].width, sums);
    std::copy_n(squares_.data() + first, views_[view].width, squares);
    if (!with_pending || fill_ == 0) return;
    for (std::size_t p = 0; p * kernels_.panel < views_[view].width; ++p) {
      alignas(64) double block_sums[kLargestTile] = {}, block_squares[kLargestTile] = {};
      const double* roots = weighted_ ? roots_.data() : nullptr;
      const std::size_t column = p * kernels_.panel;
      const std::size_t count = std::min(kernels_.panel, views_[view].width - column);
      std::copy_n(sums + column, count, block_sums);
      std::copy_n(squares + column, count, block_squares);
      kernels_.column_moments(fill_, panel(schedule_.first_panel(view) + p), roots, block_sums, block_squares);
      std::copy_n(block_sums, count, sums + column);
      std::copy_n(block_squares, count, squares + column);
    }
  }

  void read_pair(std::size_t pair, bool with_pending, double* out, int threads) const override {
    const std::size_t height = views_[pairs_[pair].row_view].width;
    const std::size_t width = views_[pairs_[pair].col_view].width;
    const bool symmetric = pairs_[pair].with_itself();
    const auto first = static_cast<std::ptrdiff_t>(schedule_.first_strip(pair));
    const auto last = static_cast<std::ptrdiff_t>(schedule_.last_strip(pair));
#pragma omp parallel for schedule(dynamic) num_threads(thread_count(threads))
    for (std::ptrdiff_t s = first; s < last; ++s) {
      const Strip& strip = schedule_.strips()[static_cast<std::size_t>(s)];
      schedule_.for_each_tile(strip, [&](std::size_t slice, Tile tile, std::size_t offset) {
        alignas(64) double sums[kLargestTile] = {};
        if (state_.size()) std::copy_n(state_.data() + offset, schedule_.tile_size(tile), sums);
        if (with_pending && fill_) multiply(strip, slice, tile, sums);
        const std::size_t first_row = slice * kernels_.slice;
        const std::size_t first_column = strip.panel * kernels_.panel + tile.first_vector * kernels_.lanes;
        const std::size_t columns = tile.vectors * kernels_.lanes;
        for (std::size_t r = 0; r < kernels_.slice && first_row + r < height; ++r) {
          for (std::size_t c = 0; c < columns && first_column + c < width; ++c) {
            const std::size_t row = first_row + r, column = first_column + c;
            if (symmetric && column < row) continue;
            out[row * width + column] = sums[r * columns + c];
          }
        }
      });
    }
  }

  void read_pending(std::size_t view, double* out) const override {
    const std::size_t width = views_[view].width;
    for (std::size_t k = 0; k < fill_; ++k) {
      for (std::size_t c = 0; c < width; ++c) {
        out[k * width + c] =
            static_cast<double>(panel(schedule_.first_panel(view) + c / kernels_.panel)[k * kernels_.panel + c % kernels_.panel]);
      }
    }
  }

 private:
  // 8 rows x 3 vectors of 16: the largest tile of any level.
  static constexpr std::size_t kLargestTile = 8 * 48;
  // Unused rows after each panel. Without them panels start at multiples of 4096 bytes, and the same row of
  // all panels falls into the same sets of the caches: 5 to 10 % at d = 1024 and 2048.
  static constexpr std::size_t kPadRows = 5;

  std::size_t panel_stride() const { return kernels_.panel * (depth_ + kPadRows); }
  const T* panel(std::size_t p) const { return block_.data() + p * panel_stride(); }

  // Columns and tiles of the block into sums, squares and state.
  void add_block(int team) {
    const double* roots = weighted_ ? roots_.data() : nullptr;
    const auto panels = static_cast<std::ptrdiff_t>(schedule_.panels());
    const auto strips = static_cast<std::ptrdiff_t>(schedule_.strips().size());
#pragma omp parallel num_threads(team) if (team > 1)
    {
#pragma omp for schedule(static) nowait
      for (std::ptrdiff_t p = 0; p < panels; ++p) {
        const std::size_t column = static_cast<std::size_t>(p) * kernels_.panel;
        kernels_.column_moments(fill_, panel(static_cast<std::size_t>(p)), roots, sums_.data() + column, squares_.data() + column);
      }
#pragma omp for schedule(dynamic)
      for (std::ptrdiff_t s = 0; s < strips; ++s) {
        const Strip& strip = schedule_.strips()[static_cast<std::size_t>(s)];
        schedule_.for_each_tile(
            strip, [&](std::size_t slice, Tile tile, std::size_t offset) { multiply(strip, slice, tile, state_.data() + offset); });
      }
    }
  }

  void append_view(std::size_t view, const Rows& rows, std::size_t first, std::size_t count, const double* roots, int team) {
    const std::size_t p = schedule_.first_panel(view);
    const T* shift = shift_.data() + p * kernels_.panel;
    T* out = block_.data() + p * panel_stride() + fill_ * kernels_.panel;
    const auto pack = kernels_.pack[static_cast<std::size_t>(rows.dtype)];
    // Whole groups of 16 rows, so that a transposed batch is still read by full cache lines.
    const std::size_t share = (count / static_cast<std::size_t>(team) + 16) / 16 * 16;
#pragma omp parallel for schedule(static) num_threads(team) if (team > 1)
    for (std::ptrdiff_t t = 0; t < team; ++t) {
      const std::size_t begin = std::min(count, static_cast<std::size_t>(t) * share);
      const std::size_t end = t + 1 == team ? count : std::min(count, begin + share);
      if (begin == end) continue;
      const PackSource source = source_of(rows, first + begin, end - begin);
      pack(&source, shift, roots ? roots + begin : nullptr, out + begin * kernels_.panel, panel_stride());
    }
  }

  void multiply(const Strip& strip, std::size_t slice, Tile tile, double* out) const {
    const Pair& pair = pairs_[strip.pair];
    const T* columns = panel(schedule_.first_panel(pair.col_view) + strip.panel) + tile.first_vector * kernels_.lanes;
    const std::size_t row = slice * kernels_.slice;
    const T* rows = panel(schedule_.first_panel(pair.row_view) + row / kernels_.panel) + row % kernels_.panel;
    kernels_.tile(fill_, columns, tile.vectors, rows, out);
  }

  ProductKernels<T> kernels_;
  AlignedArray<T> block_;
  AlignedArray<T> shift_;
  TeamChoice team_;
};

}  // namespace

MomentStore::MomentStore(const std::vector<View>& views, const std::vector<Pair>& pairs, Geometry geometry, std::size_t depth)
    : views_(views),
      pairs_(pairs),
      schedule_(views, pairs, geometry),
      depth_(depth),
      roots_(depth, 1.0),
      sums_(schedule_.panels() * geometry.panel),
      squares_(schedule_.panels() * geometry.panel) {}

std::unique_ptr<MomentStore> MomentStore::create(const std::vector<View>& views, const std::vector<Pair>& pairs, Products products,
                                                 const KernelTable& kernels) {
  if (products == Products::f32) return std::make_unique<TypedStore<float>>(views, pairs, products, kernels.f32);
  return std::make_unique<TypedStore<double>>(views, pairs, products, kernels.f64);
}

std::size_t MomentStore::bytes(const std::vector<View>& views, const std::vector<Pair>& pairs, Products products,
                               const KernelTable& kernels) {
  return products == Products::f32 ? TypedStore<float>::bytes(views, pairs, products, kernels.f32)
                                   : TypedStore<double>::bytes(views, pairs, products, kernels.f64);
}

void MomentStore::reserve() {
  if (state_.size() == 0) state_ = AlignedArray<double>(schedule_.state_size());
}

void MomentStore::clear() {
  fill_ = 0;
  weighted_ = false;
  for (AlignedArray<double>* values : {&sums_, &squares_, &state_}) std::fill(values->begin(), values->end(), 0.0);
}

template <class Visit>
void MomentStore::for_each_entry(std::size_t pair, int threads, Visit visit) {
  const Geometry& g = schedule_.geometry();
  const std::size_t height = views_[pairs_[pair].row_view].width;
  const std::size_t width = views_[pairs_[pair].col_view].width;
  const auto first = static_cast<std::ptrdiff_t>(schedule_.first_strip(pair));
  const auto last = static_cast<std::ptrdiff_t>(schedule_.last_strip(pair));
#pragma omp parallel for schedule(dynamic) num_threads(thread_count(threads))
  for (std::ptrdiff_t s = first; s < last; ++s) {
    const Strip& strip = schedule_.strips()[static_cast<std::size_t>(s)];
    schedule_.for_each_tile(strip, [&](std::size_t slice, Tile tile, std::size_t offset) {
      const std::size_t columns = tile.vectors * g.lanes;
      const std::size_t first_column = strip.panel * g.panel + tile.first_vector * g.lanes;
      for (std::size_t r = 0; r < g.slice && slice * g.slice + r < height; ++r) {
        for (std::size_t c = 0; c < columns && first_column + c < width; ++c) {
          visit(slice * g.slice + r, first_column + c, state_[offset + r * columns + c]);
        }
      }
    });
  }
}

void MomentStore::add_columns(std::size_t view, const double* sums, const double* squares) {
  const std::size_t first = schedule_.first_panel(view) * schedule_.geometry().panel;
  for (std::size_t c = 0; c < views_[view].width; ++c) {
    sums_[first + c] += sums[c];
    squares_[first + c] += squares[c];
  }
}

void MomentStore::add_pair(std::size_t pair, const double* moments, int threads) {
  reserve();
  const std::size_t width = views_[pairs_[pair].col_view].width;
  for_each_entry(pair, threads, [&](std::size_t row, std::size_t column, double& value) { value += moments[row * width + column]; });
}

std::vector<double> MomentStore::pending_roots() const { return {roots_.begin(), roots_.begin() + static_cast<std::ptrdiff_t>(fill_)}; }

void MomentStore::restore_pending(const std::vector<Rows>& rows, const std::vector<double>& roots) {
  append(rows, 0, roots.size(), nullptr, 1);
  std::copy(roots.begin(), roots.end(), roots_.begin());
  weighted_ = std::any_of(roots.begin(), roots.end(), [](double root) { return root != 1.0; });
}

void MomentStore::rebase(const PerView& delta, double weight, int threads) {
  const auto column = [this](std::size_t view) { return schedule_.first_panel(view) * schedule_.geometry().panel; };
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
