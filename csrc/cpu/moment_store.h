// Shifted sums of every view, shifted second moments of the wanted pairs, and the block that is being
// filled. Knows nothing of shifts, weights' meaning, bad values or files: accumulator.h does.
//
//   sums[a]    = sum_i roots_i * p_i           (p: packed row, already multiplied by its root)
//   state[a,b] = sum_i p_i q_i'
//
// A block of `depth` rows is packed in the product type; when it is full, every tile of the schedule takes
// its product in one go. Threads own tiles, so neither their number nor the cut of the rows into batches
// changes a bit.
#pragma once
#include <cstddef>
#include <memory>
#include <vector>

#include "core/aligned.h"
#include "core/rows.h"
#include "core/schedule.h"
#include "cpu/kernels.h"

namespace streamcca {

enum class Products { f32, f64 };

// Rows per block. A constant of the product type, kept with the state: bits must not depend on caches.
// 48 columns x 256 rows of float32 fill a 48 KB first-level cache; shorter blocks touch the float64 state
// more often, deeper ones lengthen the float32 chains.
constexpr std::size_t block_depth(Products) { return 256; }

class MomentStore {
 public:
  static std::unique_ptr<MomentStore> create(const std::vector<View>& views, const std::vector<Pair>& pairs, Products products,
                                             const KernelTable& kernels);
  virtual ~MomentStore() = default;
  virtual std::unique_ptr<MomentStore> clone() const = 0;
  virtual Products products() const = 0;

  // Allocates the state now, so that a later flush cannot fail.
  void reserve();
  std::size_t free_rows() const { return depth_ - fill_; }
  std::size_t pending_rows() const { return fill_; }

  // Packs rows[first, first + count) of every view; count <= free_rows(). `shift[v]` must be exactly
  // representable in the product type. `roots` (square roots of weights) may be null.
  virtual void append(const std::vector<Rows>& rows, std::size_t first, std::size_t count, const std::vector<std::vector<double>>& shift,
                      const double* roots, int threads) = 0;
  // Adds the pending rows into sums and state, and empties the block.
  virtual void flush(int threads) = 0;

  // Sums and second moments, with or without the pending rows; the store does not change. read_pair writes
  // row_width x col_width values, row-major, both triangles for a view with itself.
  virtual void read_sums(std::size_t view, bool with_pending, double* out) const = 0;
  virtual void read_pair(std::size_t pair, bool with_pending, double* out, int threads) const = 0;

  // Adds moments in the layout of read_pair.
  void add_sums(std::size_t view, const double* sums);
  void add_pair(std::size_t pair, const double* moments, int threads);

  // The packed rows of one view, row-major (pending_rows() x width), and their roots.
  virtual void read_pending(std::size_t view, double* out) const = 0;
  std::vector<double> pending_roots() const;
  // The inverse: packed rows into an empty block, to the same bits.
  void restore_pending(const std::vector<Rows>& rows, const std::vector<double>& roots);

  // Moves the origin of every view by -delta: p becomes p + delta. Needs an empty block.
  void rebase(const std::vector<std::vector<double>>& delta, double weight, int threads);

 protected:
  MomentStore(const std::vector<View>& views, const std::vector<Pair>& pairs, Geometry geometry, std::size_t depth);
  MomentStore(const MomentStore&) = default;

  // Calls visit(row, column, value&) for every stored entry inside the pair's true widths; of a view with
  // itself only column >= row. Strips run in parallel.
  template <class Visit>
  void for_each_entry(std::size_t pair, int threads, Visit visit);

  std::size_t padded_width(std::size_t view) const {
    return (schedule_.first_panel(view + 1) - schedule_.first_panel(view)) * schedule_.geometry().panel;
  }

  std::vector<View> views_;
  std::vector<Pair> pairs_;
  Schedule schedule_;
  std::size_t depth_;
  std::size_t fill_ = 0;
  bool weighted_ = false;       // a row of the current block has a root other than 1
  std::vector<double> roots_;   // depth entries
  AlignedArray<double> sums_;   // per panel, all views
  AlignedArray<double> state_;  // tiles in schedule order; empty until reserve()
};

}  // namespace streamcca
