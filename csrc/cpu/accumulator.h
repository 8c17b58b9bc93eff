// Moments of several aligned views, streamed: the state machine around MomentStore.
//
//   rows -> [bad values, zero weights out] -> first block: kept exact, gives the shift -> store
//
// The shift of a view is fixed from its first `block_depth` rows, held back as exact float64 until they
// are complete, so it does not depend on how the rows were cut into batches. All reads compute from a
// const state (pending rows included) and never change what later rows will produce.
//
// One object may be used from several threads: every member takes the object's mutex.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "core/rows.h"
#include "core/schedule.h"
#include "cpu/moment_store.h"
#include "cpu/row_filter.h"

namespace streamcca {

enum class Precision { automatic, f32, f64 };

// Accumulated rounding of the second moments, relative to sqrt(S_ii S_jj) and multiplied by the weight:
// independent parts add their squares, systematic ones their sizes (docs/numerics.md).
struct Rounding {
  double variance = 0;
  double systematic = 0;
};

// Everything that a state file holds. `moments` of a view with itself are a packed upper triangle.
struct State {
  Products products = Products::f32;
  bool started = false;  // products are decided
  bool settled = false;  // the shift is decided; otherwise `pending` holds raw rows
  std::uint64_t rows = 0;
  std::uint64_t skipped = 0;
  double weight = 0;
  double block_weight = 0;
  Rounding rounding;
  std::vector<std::vector<double>> shift, sums, pending;  // per view; pending is row-major
  std::vector<double> roots;                              // per pending row
  std::vector<std::vector<double>> moments;               // per pair
};

class Accumulator {
 public:
  using Poll = std::function<void()>;

  Accumulator(std::vector<View> views, std::vector<Pair> pairs, Precision precision, NonFinite nonfinite, int threads);
  Accumulator(const Accumulator& other);
  Accumulator& operator=(const Accumulator&) = delete;

  // One batch: rows[v] belongs to view v, all with the same number of rows. A row of weight zero is an
  // absent row. Throws Error and leaves the state untouched if anything is wrong with the batch. `poll` is
  // called between blocks, at most every 50 ms; if it throws, the rows consumed so far stay counted.
  void update(const std::vector<Rows>& rows, const double* weights, const Poll& poll);

  // this := moments of both row sets. The heavier side's shift survives, so a light part with a far mean
  // costs no digits of the heavy one. An empty accumulator is the identity.
  void merge(const Accumulator& other);
  void reset();

  // (S - s t' / weight) / (weight - ddof), row-major; raw_diagonal (may be null, only for a view with
  // itself) gets S_ii / (weight - ddof), the uncentered size that rounding errors are relative to.
  void covariance(std::size_t pair, double ddof, double* out, double* raw_diagonal) const;
  void mean(std::size_t view, double* out) const;
  // Relative rounding error of S_ij, as a standard deviation in units of sqrt(S_ii S_jj).
  double relative_rounding() const;

  std::uint64_t rows() const;
  double weight() const;
  std::uint64_t skipped() const;
  bool started() const;
  Products products() const;

  State save() const;
  void restore(const State& state);

  const std::vector<View>& views() const { return views_; }
  const std::vector<Pair>& pairs() const { return pairs_; }
  int threads() const { return threads_; }

 private:
  // The first rows, exact, until the shift is fixed.
  struct Head {
    std::vector<std::vector<double>> values;  // per view, row-major
    std::vector<double> roots;                // one entry a row
  };

  void check_process() const;
  void check_shapes(const std::vector<Rows>& rows) const;
  Products products_for(const std::vector<Rows>& rows) const;
  void consume(const std::vector<Rows>& rows, Run run, const double* roots, const double* weights, const Poll& poll);
  void append_to_head(const std::vector<Rows>& rows, std::size_t first, std::size_t count, const double* roots);
  void count_rows(std::size_t first, std::size_t count, const double* weights);
  void settle();
  void flush();
  void clear();
  void assign(const Accumulator& other);
  Rounding rounding_with_pending() const;
  std::vector<std::vector<double>> shift_of_head() const;
  std::unique_ptr<MomentStore> store_of_head(const std::vector<std::vector<double>>& shift) const;
  // Calls use(store, shift), with a temporary store as long as the rows are all in the head.
  template <class Use>
  void read(Use use) const;

  const std::vector<View> views_;
  const std::vector<Pair> pairs_;
  const Precision precision_;
  const NonFinite nonfinite_;
  const int threads_;
  const long process_;
  mutable std::mutex mutex_;

  bool started_ = false;
  bool settled_ = false;
  Products products_ = Products::f32;
  std::unique_ptr<MomentStore> store_;
  Head head_;
  std::vector<std::vector<double>> shift_;
  std::uint64_t rows_ = 0;
  std::uint64_t skipped_ = 0;
  double weight_ = 0;
  double block_weight_ = 0;  // of the pending rows
  Rounding rounding_;
};

}  // namespace streamcca
