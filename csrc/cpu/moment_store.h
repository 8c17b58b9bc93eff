// Shifted sums and squares of every view, shifted second moments of the wanted pairs, and the block that is
// being filled. Knows nothing of weights' meaning, bad values or files: accumulator.h does.
//
//   sums[a]    = sum_i roots_i * p_i           (p: packed row, (x - shift) times its root; block by block)
//   squares[a] = sum_i p_i^2, entry by entry   (the diagonal of state[a,a], formed in float64)
//   state[a,b] = sum_i p_i q_i'
//
// Rows are packed in the product type; when a block of `depth` rows is full, or several are, every tile of the schedule
// takes the product of each block, one after the other. A team works in one of two ways: all on the same block, each thread on
// tiles of its own (flush); or each on a block of its own, with the tiles handed from block to block in order (add_blocks). So neither
// the number of threads, nor the cut of the rows into batches, nor how many blocks were waiting changes a bit. Once reserve() and
// set_shift() have returned, only read_* with pending rows allocates, and add_blocks, which can do without.
#pragma once
#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

#include "core/aligned.h"
#include "core/rows.h"
#include "core/schedule.h"
#include "core/units.h"
#include "cpu/kernels.h"
#include "cpu/lookahead.h"

namespace streamcca {

enum class Products { f32, f64 };

constexpr double unit_roundoff(Products products) { return products == Products::f32 ? kUnit32 : kUnit64; }
// Distance between the smallest numbers: the absolute error that underflow can add to a product.
constexpr double smallest_step(Products products) { return products == Products::f32 ? kSmallestStep32 : kSmallestStep64; }

// Rows that the shift is chosen from, and whose rounding is accounted for at once (or those of a block, if fewer).
constexpr std::size_t kHeadRows = 256;
// Rows of a block, the rows whose products are summed in the product type: a constant of the level (ProductKernels::depth, matrix_unit.h),
// since bits must not depend on caches. Shorter blocks touch the float64 state more often, deeper ones lengthen the float32
// chains (with AVX-512, 512 rows were no faster than 256).
constexpr std::size_t kLongestBlock = 512;

// What one thread surely does in a second, for the choice of a team.
constexpr double kProductsPerSecond = 2e10;
constexpr double kElementsPackedPerSecond = 1e9;

// How a store cuts the work: tiles, rows per block, blocks that can be pending at once.
struct Layout {
  Geometry geometry;
  std::size_t depth = 0;
  std::size_t blocks = 0;
  bool relay = false;  // whether add_blocks takes any
};

// Blocks that are taken in one go where a batch has them: of narrow views one block is so little work that starting
// threads and sharing out its tiles would cost a good part of it. Half of the second-level cache, as it stays there.
std::size_t blocks_at_once(std::size_t block_bytes);

// Consecutive rows [first, first + count) of a batch.
struct Run {
  std::size_t first = 0;
  std::size_t count = 0;
};

// One vector per view.
using PerView = std::vector<std::vector<double>>;

// Sums that may still be blank: all zero, with whatever in their memory. So neither a new state nor a cleared one is
// written before it is needed (a flush starts each strip from zeros in the cache), and copies of it cost nothing.
struct Sums {
  RawArray<double> values;
  bool blank = true;

  Sums() = default;
  Sums(const Sums& other) { *this = other; }
  Sums& operator=(const Sums& other) {
    values.resize(other.values.size());
    blank = other.blank;
    if (!blank) values = other.values;
    return *this;
  }
};

class MomentStore {
 public:
  static std::unique_ptr<MomentStore> create(const std::vector<View>& views, const std::vector<Pair>& pairs, Products products,
                                             const KernelTable& kernels);
  // Bytes of state and block that create() and reserve() take.
  static std::size_t bytes(const std::vector<View>& views, const std::vector<Pair>& pairs, Products products, const KernelTable& kernels);
  // Whether rows of bfloat16 numbers are multiplied faster than others.
  static bool likes_narrow_rows(const std::vector<View>& views, const std::vector<Pair>& pairs, Products products,
                                const KernelTable& kernels);
  // Whether create() takes the matrix unit.
  static bool on_matrix_unit(const std::vector<View>& views, const std::vector<Pair>& pairs, Products products, const KernelTable& kernels);
  virtual ~MomentStore() = default;
  virtual std::unique_ptr<MomentStore> clone() const = 0;
  // this := other, of the same configuration, without allocating if the state of both is reserved.
  virtual void assign(const MomentStore& other) = 0;

  // Allocates the state now, so that a later flush cannot fail.
  void reserve();
  // Back to no rows, in the memory that is there: fresh pages can cost more than the work itself.
  void clear();
  // Each value must be exactly representable in the product type. Applies to rows appended later.
  virtual void set_shift(const PerView& shift) = 0;
  std::size_t pending_rows() const { return fill_; }
  // How many of `available` rows to append next: all if they leave the first block unfilled, else as many as fill some
  // blocks to the brim. If has_full_block() then, flush.
  std::size_t rows_to_append(std::size_t available) const;
  bool has_full_block() const { return fill_ >= depth_; }

  // Packs rows[first, first + count) of every view; count <= rows_to_append(count). `roots` (square roots of the rows'
  // weights, `count` of them) may be null.
  virtual void append(const std::vector<Rows>& rows, std::size_t first, std::size_t count, const double* roots, int threads) = 0;
  // Packs all of rows[0, count), and flushes whenever a block is full.
  void append_all(const std::vector<Rows>& rows, std::size_t count, const double* roots, int threads);
  // Adds the pending rows into the state, also those of an unfilled block.
  virtual void flush(int threads, Upcoming upcoming = {}) = 0;

  // The other way to add rows, while none are pending: each thread of a team packs and multiplies some whole blocks in memory of its
  // own, and strip after strip takes them in their order. Threads then share the state alone, a strip at a time, and wait for nobody
  // once they are a strip apart. Takes count = blocks_to_add() blocks from row `first` on; returns how many it added, fewer if
  // passes() is false for some of them: these and all after them are left. `passes` may be null; threads call it.
  using Passes = std::function<bool(Run)>;
  std::size_t blocks_to_add(std::size_t available_rows, int threads) const;
  virtual std::size_t add_blocks(const std::vector<Rows>& rows, std::size_t first, std::size_t count, const double* roots, int threads,
                                 const Passes& passes) = 0;
  std::size_t depth() const { return depth_; }
  std::size_t state_bytes() const { return schedule_.state_size() * sizeof(double); }

  // Sums and squares of one view, moments of one pair, with or without the pending rows; the store does not
  // change. read_pair writes row_width x col_width values, row-major; of a view with itself the upper triangle.
  void read_columns(std::size_t view, bool with_pending, double* sums, double* squares) const;
  virtual void read_pair(std::size_t pair, bool with_pending, double* out, int threads) const = 0;

  // Adds what read_columns and read_pair give.
  void add_columns(std::size_t view, const double* sums, const double* squares);
  void add_pair(std::size_t pair, const double* moments, int threads);

  // The packed rows of one view, row-major (pending_rows() x width), and their roots.
  virtual void read_pending(std::size_t view, double* out) const = 0;
  std::vector<double> pending_roots() const;
  // The inverse, into an empty store with a shift of zero: the same bits.
  virtual void restore_pending(const std::vector<Rows>& rows, const std::vector<double>& roots, int threads) = 0;

  // Moves the origin of every view by -delta: p becomes p + delta. Needs that no rows are pending.
  void rebase(const PerView& delta, double weight, int threads);

 protected:
  MomentStore(const std::vector<View>& views, const std::vector<Pair>& pairs, const Layout& layout);
  MomentStore(const MomentStore&) = default;
  MomentStore& operator=(const MomentStore&) = default;

  // What a change of single entries needs.
  void fill_if_blank();

  // Calls visit(row, column, index) for every entry of a tile inside the pair's true widths; `index` counts within the tile.
  template <class Visit>
  void for_each_entry_of(const Strip& strip, std::size_t slice, Tile tile, Visit visit) const {
    const Geometry& g = schedule_.geometry();
    const std::size_t height = views_[pairs_[strip.pair].row_view].width, width = views_[pairs_[strip.pair].col_view].width;
    const std::size_t first_row = slice * g.slice, first_column = strip.first_column + tile.first_vector * g.lanes;
    const std::size_t columns = tile.vectors * g.lanes;
    for (std::size_t r = 0; r < g.slice && first_row + r < height; ++r) {
      for (std::size_t c = 0; c < columns && first_column + c < width; ++c) visit(first_row + r, first_column + c, r * columns + c);
    }
  }

  // Calls visit(row, column, value&) for every stored entry inside the pair's true widths: of a view with
  // itself those right of the diagonal, and some left of it. Strips run in parallel.
  template <class Visit>
  void for_each_entry(std::size_t pair, int threads, Visit visit);

  std::vector<View> views_;
  std::vector<Pair> pairs_;
  Schedule schedule_;
  std::size_t depth_;
  std::size_t blocks_;  // that can be pending at once
  bool relay_;
  std::size_t fill_ = 0;
  std::vector<double> roots_;  // of the pending rows
  // Columns of all groups of all views: of the full blocks, and of the one that is being filled.
  AlignedArray<double> sums_, squares_;
  AlignedArray<double> block_sums_, block_squares_;
  Sums state_;  // tiles in schedule order; no memory until reserve()
};

}  // namespace streamcca
