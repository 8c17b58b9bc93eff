#include "cpu/moment_store.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "core/error.h"
#include "cpu/threads.h"

namespace streamcca {
namespace {

// What one thread surely does in a second, for the choice of a team.
constexpr double kProductsPerSecond = 2e10;
constexpr double kElementsPackedPerSecond = 1e9;

template <class T>
Geometry geometry_of(const ProductKernels<T>& kernels) {
  return {kernels.lanes, kernels.vectors * kernels.lanes, kernels.slice, kGroup<T>};
}

PackSource source_of(const Rows& rows, std::size_t first, std::size_t count) {
  return {rows.row(first), rows.row_stride, rows.col_stride, count, rows.cols};
}

std::size_t second_level_cache() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (bytes > 0) return static_cast<std::size_t>(bytes);
#endif
  return std::size_t{1} << 20;
}

// Blocks that are taken in one go where a batch has them: of narrow views one block is so little work that starting
// threads and sharing out its tiles would cost a good part of it. Half of the second-level cache, as it stays there.
std::size_t blocks_at_once(std::size_t block_bytes) {
  constexpr std::size_t most = 16;
  return std::clamp(second_level_cache() / 2 / std::max<std::size_t>(block_bytes, 1), std::size_t{1}, most);
}

template <class T>
class TypedStore final : public MomentStore {
 public:
  TypedStore(const std::vector<View>& views, const std::vector<Pair>& pairs, Products products, const ProductKernels<T>& kernels)
      : MomentStore(views, pairs, geometry_of(kernels), block_depth(products), blocks_for(views, products, kernels)),
        kernels_(kernels),
        packed_(schedule_.groups() * group_stride()),
        shift_(schedule_.groups() * kGroup<T>) {
    if (kernels.slice * kernels.vectors * kernels.lanes > kLargestTile) throw Error(ErrorKind::isa, "tile larger than its buffer");
  }

  TypedStore(const TypedStore& other)
      : MomentStore(other), kernels_(other.kernels_), packed_(other.packed_.size()), shift_(other.shift_), team_(other.team_) {
    copy_pending(other);
  }
  TypedStore& operator=(const TypedStore&) = delete;

  std::unique_ptr<MomentStore> clone() const override { return std::make_unique<TypedStore>(*this); }

  void assign(const MomentStore& other) override {
    const auto& same = static_cast<const TypedStore&>(other);
    MomentStore::operator=(same);
    shift_ = same.shift_;
    copy_pending(same);
  }

  static std::size_t bytes(const std::vector<View>& views, const std::vector<Pair>& pairs, Products products,
                           const ProductKernels<T>& kernels) {
    const Geometry geometry = geometry_of(kernels);
    const std::size_t rows = block_depth(products) * blocks_for(views, products, kernels) + kPadRows;
    return Schedule::state_size(views, pairs, geometry) * sizeof(double) + Schedule::groups(views, geometry) * rows * kLineBytes;
  }

  void set_shift(const PerView& shift) override {
    for (std::size_t view = 0; view < views_.size(); ++view) {
      T* out = shift_.data() + schedule_.first_group(view) * kGroup<T>;
      for (std::size_t c = 0; c < views_[view].width; ++c) out[c] = static_cast<T>(shift[view][c]);
    }
  }

  // Threads share out the groups, not the rows, since the sums of a column have one order.
  void append(const std::vector<Rows>& rows, std::size_t first, std::size_t count, const double* roots, int threads) override {
    const std::size_t groups = schedule_.groups();
    team_.run(static_cast<double>(count * groups * kGroup<T>) / kElementsPackedPerSecond, threads, [&](int team) {
#pragma omp parallel for schedule(static) num_threads(team) if (team > 1)
      for (int t = 0; t < team; ++t) {
        const auto part = [&](int i) { return groups * static_cast<std::size_t>(i) / static_cast<std::size_t>(team); };
        append_groups(rows, first, count, roots, part(t), part(t + 1));
      }
    });
    for (std::size_t k = 0; k < count; ++k) roots_[fill_ + k] = roots ? roots[k] : 1.0;
    fill_ += count;
  }

  void flush(int threads, Upcoming upcoming) override {
    if (fill_ == 0) return;
    reserve();
    upcoming.count = std::min(upcoming.count, depth_ * blocks_);
    const double products = static_cast<double>(schedule_.state_size()) * static_cast<double>(fill_);
    team_.run(products / kProductsPerSecond, threads, [&](int team) { add_pending(team, upcoming); });
    if (fill_ % depth_) close_block(0, schedule_.groups());
    fill_ = 0;
    state_.blank = false;
  }

  void read_pair(std::size_t pair, bool with_pending, double* out, int threads) const override {
    const std::size_t height = views_[pairs_[pair].row_view].width;
    const std::size_t width = views_[pairs_[pair].col_view].width;
    const bool symmetric = pairs_[pair].with_itself();
    const std::size_t blocks = with_pending ? pending_blocks() : 0;
    const auto first = static_cast<std::ptrdiff_t>(schedule_.first_strip(pair));
    const auto last = static_cast<std::ptrdiff_t>(schedule_.last_strip(pair));
#pragma omp parallel for schedule(dynamic) num_threads(thread_count(threads))
    for (std::ptrdiff_t s = first; s < last; ++s) {
      const Strip& strip = schedule_.strips()[static_cast<std::size_t>(s)];
      schedule_.for_each_tile(strip, [&](std::size_t slice, Tile tile, std::size_t offset) {
        alignas(64) double sums[kLargestTile] = {};
        if (!state_.blank) std::copy_n(state_.values.data() + offset, schedule_.tile_size(tile), sums);
        for (std::size_t block = 0; block < blocks; ++block) multiply(strip, slice, tile, block, sums, nullptr);
        const std::size_t first_row = slice * kernels_.slice;
        const std::size_t first_column = strip.first_column + tile.first_vector * kernels_.lanes;
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
        out[k * width + c] = static_cast<double>(group(schedule_.first_group(view) + c / kGroup<T>)[k * kGroup<T> + c % kGroup<T>]);
      }
    }
  }

  void restore_pending(const std::vector<Rows>& rows, const std::vector<double>& roots) override {
    append(rows, 0, roots.size(), nullptr, 1);
    std::copy(roots.begin(), roots.end(), roots_.begin());
    for (AlignedArray<double>* values : {&block_sums_, &block_squares_}) std::fill(values->begin(), values->end(), 0.0);
    for (std::size_t g = 0; g < schedule_.groups(); ++g)  // the rows are scaled, their sums not yet
      kernels_.sum_columns(group(g), fill_, roots_.data(), block_sums_.data() + g * kGroup<T>, block_squares_.data() + g * kGroup<T>);
  }

 private:
  // 8 rows x 3 vectors of 16: the largest tile of any level.
  static constexpr std::size_t kLargestTile = 8 * 48;
  // Unused rows after each group. Without them groups start at multiples of 4096 bytes, and the same row of
  // all groups falls into the same sets of the caches: 5 to 10 % at d = 1024 and 2048.
  static constexpr std::size_t kPadRows = 5;

  static std::size_t blocks_for(const std::vector<View>& views, Products products, const ProductKernels<T>& kernels) {
    return blocks_at_once(Schedule::groups(views, geometry_of(kernels)) * block_depth(products) * kLineBytes);
  }

  std::size_t group_stride() const { return kGroup<T> * (depth_ * blocks_ + kPadRows); }
  const T* group(std::size_t g) const { return packed_.data() + g * group_stride(); }
  std::size_t pending_blocks() const { return (fill_ + depth_ - 1) / depth_; }
  std::size_t rows_in(std::size_t block) const { return std::min(depth_, fill_ - block * depth_); }
  // First row of a block in a column of a view.
  const T* packed(std::size_t view, std::size_t column, std::size_t block) const {
    return group(schedule_.first_group(view) + column / kGroup<T>) + block * depth_ * kGroup<T> + column % kGroup<T>;
  }

  void copy_pending(const TypedStore& other) {
    for (std::size_t g = 0; g < schedule_.groups(); ++g)
      std::copy_n(other.group(g), fill_ * kGroup<T>, packed_.data() + g * group_stride());
  }

  // The columns of groups [begin, end), of all views counted, of `count` rows: piece by piece, up to the end of a block each.
  void append_groups(const std::vector<Rows>& rows, std::size_t first, std::size_t count, const double* roots, std::size_t begin,
                     std::size_t end) {
    for (std::size_t done = 0; done < count;) {
      const std::size_t at = fill_ + done, piece = std::min(count - done, depth_ - at % depth_);
      for (std::size_t view = 0; view < views_.size(); ++view) {
        const std::size_t from = std::max(begin, schedule_.first_group(view)), to = std::min(end, schedule_.first_group(view + 1));
        if (from >= to) continue;
        const std::size_t column = (from - schedule_.first_group(view)) * kGroup<T>;
        PackSource source = source_of(rows[view], first + done, piece);
        source.data += static_cast<std::ptrdiff_t>(column) * source.col_stride;
        source.cols = std::min(source.cols - column, (to - from) * kGroup<T>);
        const std::size_t g = from * kGroup<T>;
        kernels_.pack[static_cast<std::size_t>(rows[view].dtype)](&source, shift_.data() + g, roots ? roots + done : nullptr,
                                                                  packed_.data() + from * group_stride() + at * kGroup<T>, group_stride(),
                                                                  block_sums_.data() + g, block_squares_.data() + g);
      }
      done += piece;
      if ((fill_ + done) % depth_ == 0) close_block(begin, end);
    }
  }

  // The sums of the present block, of groups [begin, end), go where those of the full blocks are.
  void close_block(std::size_t begin, std::size_t end) {
    for (std::size_t c = begin * kGroup<T>; c < end * kGroup<T>; ++c) {
      sums_[c] += block_sums_[c];
      squares_[c] += block_squares_[c];
      block_sums_[c] = block_squares_[c] = 0;
    }
  }

  // A thread takes its next strip before it works on the present one, so that it can call for the panel of the next.
  void add_pending(int team, Upcoming upcoming) {
    const std::size_t strips = schedule_.strips().size();
    std::atomic<std::size_t> untaken{0};
#pragma omp parallel num_threads(team) if (team > 1)
    {
      Lookahead lookahead(upcoming, team, thread_number(), depth_ / 4 * kLineBytes);
      for (std::size_t strip = untaken++; strip < strips;) {
        const std::size_t next = untaken++;
        add_strip(schedule_.strips()[strip], next < strips ? &schedule_.strips()[next] : nullptr, lookahead);
        strip = next;
      }
    }
  }

  void add_strip(const Strip& strip, const Strip* next, Lookahead& lookahead) {
    for (std::size_t block = 0; block < pending_blocks(); ++block) {
      std::size_t tiles = 0;
      schedule_.for_each_tile(strip, [&](std::size_t slice, Tile tile, std::size_t offset) {
        // Several blocks fit the second-level cache; the panels of a single one may not.
        const void* ahead = blocks_ == 1 && next ? part_of_panel(*next, tiles++) : nullptr;
        if (!ahead) ahead = lookahead.next();
        double* out = state_.values.data() + offset;
        if (state_.blank && block == 0) std::fill_n(out, schedule_.tile_size(tile), 0.0);
        multiply(strip, slice, tile, block, out, ahead);
      });
    }
  }

  // A quarter of a group, or null after the last one of the panel.
  const void* part_of_panel(const Strip& strip, std::size_t part) const {
    const std::size_t column = (strip.first_column / kGroup<T> + part / 4) * kGroup<T>;
    if (column >= strip.first_column + strip.vectors * kernels_.lanes) return nullptr;
    return packed(pairs_[strip.pair].col_view, column, 0) + part % 4 * (depth_ / 4) * kGroup<T>;
  }

  void multiply(const Strip& strip, std::size_t slice, Tile tile, std::size_t block, double* out, const void* ahead) const {
    const Pair& pair = pairs_[strip.pair];
    const T* columns[kLargestVectors];
    for (std::size_t v = 0; v < tile.vectors; ++v)
      columns[v] = packed(pair.col_view, strip.first_column + (tile.first_vector + v) * kernels_.lanes, block);
    kernels_.tile(rows_in(block), columns, tile.vectors, packed(pair.row_view, slice * kernels_.slice, block), out,
                  ahead ? ahead : columns[0]);
  }

  ProductKernels<T> kernels_;
  RawArray<T> packed_;
  AlignedArray<T> shift_;
  TeamChoice team_;
};

}  // namespace

MomentStore::MomentStore(const std::vector<View>& views, const std::vector<Pair>& pairs, Geometry geometry, std::size_t depth,
                         std::size_t blocks)
    : views_(views),
      pairs_(pairs),
      schedule_(views, pairs, geometry),
      depth_(depth),
      blocks_(blocks),
      roots_(depth * blocks, 1.0),
      sums_(schedule_.groups() * geometry.group),
      squares_(sums_.size()),
      block_sums_(sums_.size()),
      block_squares_(sums_.size()) {}

std::size_t MomentStore::rows_to_append(std::size_t available) const {
  const std::size_t full = std::min((fill_ + available) / depth_, blocks_);
  return full ? full * depth_ - fill_ : available;
}

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
      const std::size_t first_column = strip.first_column + tile.first_vector * g.lanes;
      for (std::size_t r = 0; r < g.slice && slice * g.slice + r < height; ++r) {
        for (std::size_t c = 0; c < columns && first_column + c < width; ++c) {
          visit(slice * g.slice + r, first_column + c, state_.values[offset + r * columns + c]);
        }
      }
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
