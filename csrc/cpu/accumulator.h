// Moments of several aligned views, streamed: the state machine around MomentStore.
//
//   rows -> [bad values, zero weights out] -> first block: kept exact, gives the shift -> store
//
// The shift of a view is fixed from its first kHeadRows rows, held back as exact float64 until they
// are complete, so it does not depend on how the rows were cut into batches. All reads compute from a
// const state (pending rows included) and never change what later rows will produce.
//
// One object may be used from several threads: every member takes the object's mutex. It is recursive,
// since the poll of update() may run a signal handler that reads the object; state is consistent there.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "core/rows.h"
#include "core/schedule.h"
#include "core/uncertainty.h"
#include "cpu/moment_store.h"
#include "cpu/row_filter.h"

namespace streamcca {

enum class Precision { automatic, f32, f64 };

// Everything that a state file holds. `moments` of a view with itself are a packed upper triangle.
struct State {
  Products products = Products::f32;
  bool started = false;  // products are decided
  bool settled = false;  // the shift is decided; otherwise `pending` holds raw rows
  std::uint64_t rows = 0;
  std::uint64_t skipped = 0;
  double weight = 0;
  std::uint64_t block_rows = 0;  // whose rounding is not accounted for yet
  double block_weight = 0;       // of these
  double rounding = 0;
  double row_unit = 1;
  PerView shift, sums, squares, pending;     // pending is row-major
  std::vector<double> roots;                 // per pending row
  std::vector<std::vector<double>> moments;  // per pair
};

class Accumulator {
 public:
  using Poll = std::function<void()>;

  Accumulator(std::vector<View> views, std::vector<Pair> pairs, Precision precision, NonFinite nonfinite, int threads);
  Accumulator(const Accumulator& other);
  Accumulator& operator=(const Accumulator&) = delete;

  // One batch: rows[v] belongs to view v, all with the same number of rows. A row of weight zero is an
  // absent row. If anything is wrong with the batch, or memory is short, it throws and the state is
  // untouched. `poll` is called between blocks, at most every 50 ms; if it throws, the rows consumed so far
  // stay counted.
  void update(const std::vector<Rows>& rows, const double* weights, const Poll& poll);

  // this := moments of both row sets. The heavier side's shift survives, so a light part with a far mean
  // costs no digits of the heavy one. An empty accumulator is the identity. Untouched if it throws.
  void merge(const Accumulator& other);
  void reset();
  // Remembers the present state, in memory that stays, and brings it back: for callers whose own work may fail after several
  // updates. One mark at a time; copies have none.
  void mark();
  void return_to_mark();
  std::unique_ptr<Accumulator> copy_of_mark() const;
  // What `update` would refuse, without counting anything.
  void check(const std::vector<Rows>& rows) const;
  // Takes pending rows into the state, though their block is not full: the numbers are as before to rounding, and nothing waits.
  void finish();

  // (S - s t' / weight) / (weight - ddof), row-major; `uncertainty` (may be null) is filled for a view with
  // itself, in the same units.
  void covariance(std::size_t pair, double ddof, double* out, Uncertainty* uncertainty) const;
  void mean(std::size_t view, double* out) const;

  std::uint64_t rows() const;
  double weight() const;
  std::uint64_t skipped() const;
  bool started() const;
  Products products() const;

  State save() const;
  // Throws Error if the products of the state contradict the precision that was asked for.
  void restore(const State& state);

  const std::vector<View>& views() const { return views_; }
  const std::vector<Pair>& pairs() const { return pairs_; }

 private:
  // The first rows, exact, until the shift is fixed. Capacity for all of them is there from the start.
  struct Head {
    PerView values;  // row-major
    std::vector<double> roots;
  };
  class Busy;
  struct Empty {};
  Accumulator(const Accumulator& configuration, Empty);

  void check_process() const;
  int reading_threads(std::size_t elements) const;
  void check_shapes(const std::vector<Rows>& rows) const;
  Products products_for(const std::vector<Rows>& rows) const;
  std::vector<double> largest_shifts() const;
  bool copy_is_cheaper_than(const std::vector<Rows>& rows) const;
  void save_to(std::unique_ptr<Accumulator>* kept);
  std::size_t rows_to_take(std::size_t available) const;
  std::size_t add_blocks(const std::vector<Rows>& rows, Run run, const double* roots, const double* weights, const MagnitudeCheck* check);
  void start(Products products);
  void consume(const std::vector<Rows>& rows, Run run, const double* roots, const double* weights,
               const std::function<void()>& between_blocks);
  void append_to_head(const std::vector<Rows>& rows, std::size_t first, std::size_t count, const double* roots);
  void count_rows(const std::vector<Rows>& rows, Run run, const double* weights);
  void settle();
  void flush();
  void close_block();
  void clear();
  void assign(const Accumulator& other);
  std::size_t accounted_rows() const;
  double rounding_with_pending() const;
  void choose_shift_of_head(PerView* shift) const;
  // Calls use(store, shift), with a temporary store as long as the rows are all in the head.
  template <class Use>
  void read(Use use) const;

  const std::vector<View> views_;
  const std::vector<Pair> pairs_;
  const Precision precision_;
  const NonFinite nonfinite_;
  const int threads_;
  const long process_;
  const KernelTable& kernels_;
  mutable std::recursive_mutex mutex_;

  bool busy_ = false;  // an update is between two blocks
  bool started_ = false;
  bool settled_ = false;
  Products products_ = Products::f32;
  std::unique_ptr<MomentStore> store_;
  std::unique_ptr<Accumulator> checkpoint_;  // as it was before a long batch; its memory is kept
  std::unique_ptr<Accumulator> mark_;        // as the caller wants it remembered
  Head head_;
  std::vector<Rows> head_rows_;  // settle() points them at the head without allocating
  PerView shift_;
  std::uint64_t rows_ = 0;
  std::uint64_t skipped_ = 0;
  double weight_ = 0;
  std::uint64_t block_rows_ = 0;  // pending
  double block_weight_ = 0;       // of the pending rows
  double row_unit_ = 1;           // unit roundoff of the finest rows seen
  double rounding_ = 0;           // sum of the variances of the blocks' errors, each times the block's weight squared
};

}  // namespace streamcca
