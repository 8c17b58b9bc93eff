// Shifted sums and squares of every view, shifted second moments of the wanted pairs, and the block that is
// being filled. Knows nothing of weights' meaning, bad values or files: accumulator.h does.
//
//   sums[a]    = sum_i roots_i * p_i           (p: packed row, (x - shift) times its root)
//   squares[a] = sum_i p_i^2, entry by entry   (the diagonal of state[a,a], formed in float64)
//   state[a,b] = sum_i p_i q_i'
//
// A block of `depth` rows is packed in the product type; when it is full, every tile of the schedule takes
// its product in one go. Threads own tiles, so neither their number nor the cut of the rows into batches
// changes a bit. Once reserve() and set_shift() have returned, only read_* with pending rows allocates.
#pragma once
#include <cstddef>
#include <memory>
#include <vector>

#include "core/aligned.h"
#include "core/rows.h"
#include "core/schedule.h"
#include "core/units.h"
#include "cpu/kernels.h"

namespace streamcca {

enum class Products { f32, f64 };

constexpr double unit_roundoff(Products products) { return products == Products::f32 ? kUnit32 : kUnit64; }
// Distance between the smallest numbers: the absolute error that underflow can add to a product.
constexpr double smallest_step(Products products) { return products == Products::f32 ? 1.401298464324817e-45 : 4.9406564584124654e-324; }

// Rows per block. A constant of the product type, kept with the state: bits must not depend on caches.
// 48 columns x 256 rows of float32 fill a 48 KB first-level cache; shorter blocks touch the float64 state
// more often, deeper ones lengthen the float32 chains.
constexpr std::size_t block_depth(Products) { return 256; }

// One vector per view.
using PerView = std::vector<std::vector<double>>;

class MomentStore {
 public:
  static std::unique_ptr<MomentStore> create(const std::vector<View>& views, const std::vector<Pair>& pairs, Products products,
                                             const KernelTable& kernels);
  // Bytes of state and block that create() and reserve() take.
  static std::size_t bytes(const std::vector<View>& views, const std::vector<Pair>& pairs, Products products, const KernelTable& kernels);
  virtual ~MomentStore() = default;
  virtual std::unique_ptr<MomentStore> clone() const = 0;

  // Allocates the state now, so that a later flush cannot fail.
  void reserve();
  // Back to no rows, in the memory that is there: fresh pages can cost more than the work itself.
  void clear();
  // Each value must be exactly representable in the product type. Applies to rows appended later.
  virtual void set_shift(const PerView& shift) = 0;
  std::size_t free_rows() const { return depth_ - fill_; }
  std::size_t pending_rows() const { return fill_; }

  // Packs rows[first, first + count) of every view; count <= free_rows(). `roots` (square roots of the rows'
  // weights, `count` of them) may be null.
  virtual void append(const std::vector<Rows>& rows, std::size_t first, std::size_t count, const double* roots, int threads) = 0;
  // Adds the pending rows into sums, squares and state, and empties the block.
  virtual void flush(int threads) = 0;

  // Sums and squares of one view, moments of one pair, with or without the pending rows; the store does not
  // change. read_pair writes row_width x col_width values, row-major; of a view with itself the upper triangle.
  virtual void read_columns(std::size_t view, bool with_pending, double* sums, double* squares) const = 0;
  virtual void read_pair(std::size_t pair, bool with_pending, double* out, int threads) const = 0;

  // Adds what read_columns and read_pair give.
  void add_columns(std::size_t view, const double* sums, const double* squares);
  void add_pair(std::size_t pair, const double* moments, int threads);

  // The packed rows of one view, row-major (pending_rows() x width), and their roots.
  virtual void read_pending(std::size_t view, double* out) const = 0;
  std::vector<double> pending_roots() const;
  // The inverse, into an empty block with a shift of zero: the same bits.
  void restore_pending(const std::vector<Rows>& rows, const std::vector<double>& roots);

  // Moves the origin of every view by -delta: p becomes p + delta. Needs an empty block.
  void rebase(const PerView& delta, double weight, int threads);

 protected:
  MomentStore(const std::vector<View>& views, const std::vector<Pair>& pairs, Geometry geometry, std::size_t depth);
  MomentStore(const MomentStore&) = default;

  // Calls visit(row, column, value&) for every stored entry inside the pair's true widths: of a view with
  // itself those right of the diagonal, and some left of it. Strips run in parallel.
  template <class Visit>
  void for_each_entry(std::size_t pair, int threads, Visit visit);

  std::vector<View> views_;
  std::vector<Pair> pairs_;
  Schedule schedule_;
  std::size_t depth_;
  std::size_t fill_ = 0;
  bool weighted_ = false;         // a row of the current block may have a root other than 1
  std::vector<double> roots_;     // depth entries
  AlignedArray<double> sums_;     // per panel, all views
  AlignedArray<double> squares_;  // likewise
  AlignedArray<double> state_;    // tiles in schedule order; empty until reserve()
};

}  // namespace streamcca
