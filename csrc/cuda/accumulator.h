// Moments of several aligned views on a CUDA device: the counterpart of cpu/accumulator.h, whose words, rules and state it shares.
//
//   rows -> [check] -> first 256: kept exact, give the shift -> packed into the slots of a block -> block full? products into the state
//
// The host only counts: which slots a batch fills, when a block is full. Values are never waited for. So a batch with a bad value is
// refused on the device: from its first kernel on, it and all later batches do nothing, and the next call that looks (every read, and the
// next update after the device is done) throws, with the counts as they were before that batch. Under `skip` such rows take slots, as rows
// of zeros with weight zero.
//
// update() returns before the device is done; rows must stay as they are until then, as the order of the caller's stream ensures.
#pragma once
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "core/rows.h"
#include "core/schedule.h"
#include "core/uncertainty.h"
#include "cuda/block.h"
#include "cuda/kernels.h"
#include "cuda/runtime.h"
#include "cuda/tile_plan.h"
#include "cuda/uploads.h"

namespace streamcca::cuda {

enum class Precision { automatic, f32, f64 };
enum class NonFinite { raise, skip, propagate };

struct Options {
  Precision precision = Precision::automatic;
  NonFinite nonfinite = NonFinite::raise;
  int device = -1;  // of the first batch
  Ladder ladder = Ladder::best;
  std::size_t block_rows = 0;  // for tests; 0: as layout.h says
};

// As State of cpu/accumulator.h, without pending rows once the shift is settled: they are in the moments.
struct Snapshot {
  Products products = Products::f32;
  bool started = false, settled = false;
  std::uint64_t rows = 0, skipped = 0;
  double weight = 0, rounding = 0, row_unit = 1;
  std::vector<std::vector<double>> shift, sums, squares, pending;
  std::vector<double> roots;
  std::vector<std::vector<double>> moments;
};

// Device memory that lives as long as someone looks at it.
using SharedBuffer = std::shared_ptr<Buffer>;

class Accumulator {
 public:
  Accumulator(std::vector<View> views, std::vector<Pair> pairs, const Options& options);
  ~Accumulator();
  Accumulator(const Accumulator&) = delete;
  Accumulator& operator=(const Accumulator&) = delete;

  // One batch in the memory of one device; weights (in host memory) may be null. Launches and returns.
  void update(const std::vector<Rows>& rows, int device, const double* weights, Stream stream);

  // These wait for the device, and throw where a batch was refused since the last of them.
  void reset();
  Snapshot save();
  void restore(const Snapshot& snapshot);
  std::uint64_t rows();
  std::uint64_t skipped();
  double weight();

  bool started();
  Products products();
  int device() const { return options_.device; }
  std::size_t depth() const;  // rows of a block
  // Rows, and the set of planes, that there is room for at present.
  std::pair<std::size_t, unsigned> room() const { return {block_.rows(), block_.planes()}; }
  const std::vector<View>& views() const { return views_; }
  const std::vector<Pair>& pairs() const { return pairs_; }

  // The tiles of the state themselves, without pending rows, and which groups each multiplies; none before 256 rows.
  SharedBuffer tiles();
  const std::vector<Task>& tasks() const { return plan_.tasks; }
  const std::vector<Unit>& units() const { return plan_.units; }
  // The covariance of a pair with all rows so far, row-major, in new memory on the device; `stream` may use it at once.
  SharedBuffer covariance(std::size_t pair, double ddof, Stream stream);
  // Of moments that have a shift, from a few numbers a column: the mean row of a view, and what rounding did to a view's own pair.
  bool settled();
  std::vector<double> mean(std::size_t view);
  Uncertainty uncertainty(std::size_t pair, double ddof);
  // Later work of `stream` waits for what was launched here.
  void hold_back(Stream stream);

 private:
  // Work on another stream waits for all that was launched here, also where an exception came after it.
  class Recorded {
   public:
    explicit Recorded(const Accumulator& of) : of_(of) {}
    ~Recorded();
    Recorded(const Recorded&) = delete;
    Recorded& operator=(const Recorded&) = delete;

   private:
    const Accumulator& of_;
  };
  // Of which numbers rows without weights are, by view.
  struct Kinds {
    std::vector<bool> half;    // float16
    std::vector<bool> narrow;  // bfloat16
  };
  // What the host knows of the stream of rows; as it was before each batch that may still be refused.
  struct Counters {
    bool started = false, settled = false;
    Products products = Products::f32;
    std::uint64_t slots = 0;  // rows of weight above zero, left-out ones included
    std::size_t fill = 0;     // slots in use, of the head or of the block
    double weight = 0;
    double block_weight = 0;  // of the block
    double rounding = 0, row_unit = 1;
    Kinds kinds;                // of the rows of the block, or of the head until it is full
    bool halves_alone = false;  // the rows of the block, if any, are in the plane of float16 numbers only
  };

  void check_shapes(const std::vector<Rows>& rows) const;
  void check_device(int device) const;
  Products products_for(const std::vector<Rows>& rows) const;
  void use(Stream stream);
  void follow(Stream stream);
  void start(Products products);
  void make_memory(Products products, std::size_t splits);
  void make_state(std::size_t state, std::size_t head);
  void resolve();
  void check_settled(const char* what) const;
  bool is_unmoved(std::size_t view) const { return refused_ && refused_[1 + view] == kUnmoved; }  // as far as the host has heard
  Ticket ticket() const { return {status_.as<Status>(), batch_}; }
  std::vector<Batch> batches_of(const std::vector<Rows>& rows, const double* weights, std::vector<double>* kept_weights);
  void check_values(const std::vector<Batch>& batches, const std::vector<double>& weights);
  Kinds every_kind(bool value) const { return {std::vector<bool>(views_.size(), value), std::vector<bool>(views_.size(), value)}; }
  Kinds kinds_of(const std::vector<Rows>& rows, bool weighted) const;
  // Which planes rows need: those of the block, or others that follow them.
  unsigned planes_in_use() const;
  unsigned planes_for(const Kinds& kinds, Products products) const;
  bool are_halves_alone(const Kinds& kinds) const;
  // Room in the block for `count` rows, before anything is launched. `known`: the device is done, so planes can be given back.
  void reserve(std::size_t count, const Kinds& kinds, bool known);
  void give_back();
  void append(std::vector<Batch> batches, const Kinds& kinds, const std::vector<double>& weights, bool to_head);
  void pack(std::size_t view, const Batch& rows, const Kinds& kinds);
  void prepare_planes(const Kinds& kinds);
  void settle();
  void report_shifts();
  void flush();
  double block_variance(double rows, double weight, double total) const;
  // Of the tiles of pairs [first, last).
  Product product_of(std::size_t first, std::size_t last, double* target) const;
  // Tiles of a pair with all rows: the state's own where no rows are pending, else a copy with them.
  std::pair<double*, Buffer> tiles_with_pending(std::size_t pair);
  Buffer columns_with_pending();
  std::vector<double> fetch(const double* from, std::size_t count) const;
  std::size_t first_column(std::size_t view) const { return schedule_.first_group(view) * kTile; }
  std::size_t columns() const { return schedule_.groups() * kTile; }

  const std::vector<View> views_;
  const std::vector<Pair> pairs_;
  Options options_;
  const Schedule schedule_;
  const TilePlan plan_;
  std::size_t splits_ = 1;
  std::mutex mutex_;

  Counters now_;
  std::deque<std::pair<unsigned long long, Counters>> journal_;
  unsigned long long batch_ = 0;
  Status seen_;  // as of the last wait
  Stream stream_ = nullptr;
  std::unique_ptr<Event> last_;

  volatile unsigned* refused_ = nullptr;  // pinned: whether a batch was refused, then what is known of each view's shift (0: nothing yet)
  Status* status_copy_ = nullptr;         // pinned
  Uploads uploads_;
  Block block_;
  Buffer status_, device_tasks_, device_units_, shift_, head_, head_roots_, planes_, halves_, sums_, parts_;
  Buffer bad_;  // of the present batch
  SharedBuffer state_;
};

}  // namespace streamcca::cuda
