// What happens to rows before they are multiplied: checked, kept for the shift, packed.
#include "cuda/device.h"
#include "cuda/kernels.h"

namespace streamcca::cuda {
namespace {

constexpr std::size_t kRowsAtOnce = 32;  // of one block of threads, by kTile columns

STREAMCCA_DEVICE std::size_t row_of(const Batch& batch, std::size_t k) {
  return batch.list ? static_cast<std::size_t>(batch.list[batch.first + k]) : batch.first + k;
}
STREAMCCA_DEVICE double root_of(const Batch& batch, std::size_t k, std::size_t row) {
  if (batch.bad && batch.bad[row]) return 0;
  return batch.roots ? batch.roots[batch.first + k] : 1;
}

STREAMCCA_DEVICE std::size_t magnitude(std::ptrdiff_t stride) { return static_cast<std::size_t>(stride < 0 ? -stride : stride); }
// Whether neighboring threads should read neighboring rows instead of columns: channels first.
STREAMCCA_DEVICE bool rows_lie_closer(const Rows& rows) { return magnitude(rows.row_stride) < magnitude(rows.col_stride); }

// Element e of a piece of kRowsAtOnce x kTile, in the order in which memory is read best.
struct Place {
  std::size_t row, column;
};
STREAMCCA_DEVICE Place place_of(std::size_t e, bool by_rows) {
  if (by_rows) return {e % kRowsAtOnce, e / kRowsAtOnce};
  return {e / kTile, e % kTile};
}

constexpr std::size_t ceil_div(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

// ---------------------------------------------------------------- check

STREAMCCA_KERNEL void check_kernel(Check check) {
  // Goes on where another view of this very batch was refused: the first such row still has to be found.
  if (check.status->refused_batch < check.number) return;
  const Batch& batch = check.batch;
  const std::size_t pieces_across = ceil_div(batch.rows.cols, kTile);
  const std::size_t first_row = block_index() / pieces_across * kRowsAtOnce, first_column = block_index() % pieces_across * kTile;
  const bool by_rows = rows_lie_closer(batch.rows);
  for (std::size_t e = thread_index(); e < kRowsAtOnce * kTile; e += kThreads) {
    const Place place = place_of(e, by_rows);
    const std::size_t k = first_row + place.row, column = first_column + place.column;
    if (k >= batch.count || column >= batch.rows.cols) continue;
    const std::size_t row = row_of(batch, k);
    const double size = fabs(element_as_double(batch.rows, row, column));
    if (size <= check.limit) continue;
    const bool finite = size < HUGE_VAL;  // false for NaN
    if (check.skip && !finite) {
      check.bad[row] = 1;
      continue;
    }
    if (finite) atomic_max(&check.status->too_large, 1ull);
    atomic_min(&check.status->where, (static_cast<unsigned long long>(row) << kViewBits) | check.view);
    atomic_min(&check.status->refused_batch, check.number);
    store_for_host(check.refused, 1);
  }
}

// One warp: rows are looked at 32 at a time, and those that are left out counted in their order.
STREAMCCA_KERNEL void count_kernel(Count count) {
  if (is_void(count.status, count.number)) return;
  const Batch& batch = count.batch;
  const std::size_t lane = thread_index();
  for (std::size_t first = 0; first < batch.count; first += 32) {
    const bool bad = first + lane < batch.count && batch.bad[row_of(batch, first + lane)];
    const unsigned votes = ballot(bad);
    if (lane != 0) continue;
    for (std::size_t i = 0; i < 32; ++i) {
      if (!(votes >> i & 1)) continue;
      const double root = batch.roots ? batch.roots[batch.first + first + i] : 1;
      count.status->skipped += 1;
      count.status->skipped_weight += root * root;
    }
  }
}

// ---------------------------------------------------------------- head

STREAMCCA_KERNEL void head_kernel(HeadRows job) {
  if (is_void(job.ticket.status, job.ticket.batch)) return;
  const std::size_t width = ceil_div(job.batch.rows.cols, kTile) * kTile;
  const std::size_t e = block_index() * kThreads + thread_index();
  if (e >= job.batch.count * width) return;
  const std::size_t k = e / width, column = e % width, row = row_of(job.batch, k);
  const double root = root_of(job.batch, k, row);
  const bool live = root > 0 && column < job.batch.rows.cols;
  job.head[(job.slot + k) * job.pitch + column] = live ? element_as_double(job.batch.rows, row, column) : 0;
  if (column == 0 && job.roots) job.roots[job.slot + k] = root;
}

STREAMCCA_DEVICE bool is_float16(double x) {  // a multiple of 2^-24, of 11 digits
  const double size = fabs(x);
  if (!(size <= 65504)) return false;
  const double unit = size < 0x1p-14 ? 0x1p-24 : exp2(static_cast<double>(ilogb(size) - 10));
  return floor(size / unit) * unit == size;
}

STREAMCCA_DEVICE bool is_bfloat16(double x) {
  const float single = static_cast<float>(x);
  return static_cast<double>(single) == x && (float_bits(single) & 0xffffu) == 0;
}

STREAMCCA_KERNEL void shift_kernel(ShiftChoice job) {
  if (is_void(job.ticket.status, job.ticket.batch)) return;
  const std::size_t column = block_index() * kThreads + thread_index();
  if (column >= job.columns) return;
  constexpr double few_deviations = 1;
  double first = 0, sum = 0, count = 0;
  bool constant = true, narrow = job.keep_narrow, half = job.keep_narrow;
  for (std::size_t k = 0; k < job.rows; ++k) {
    if (!(job.roots[k] > 0)) continue;
    const double x = job.head[k * job.columns + column];
    if (count == 0) first = x;
    sum += x - first;
    count += 1;
    constant = constant && x == first;
    narrow = narrow && is_bfloat16(x);
    half = half && is_float16(x);
  }
  double shift = first;
  if (!constant) {
    const double mean = first + sum / count;
    double squares = 0;
    for (std::size_t k = 0; k < job.rows; ++k) {
      const double difference = job.head[k * job.columns + column] - mean;
      if (job.roots[k] > 0) squares += difference * difference;
    }
    const double deviation = sqrt(squares / count);
    const double grid = exp2(floor(log2(deviation / 8)));
    shift = grid * nearbyint(mean / grid);
    if ((narrow || half) && fabs(mean) <= few_deviations * deviation) shift = 0;
    if (!(fabs(shift) < HUGE_VAL)) shift = 0;  // rows that are not finite, let through by request
  }
  job.shift[column] = job.products == Products::f32 ? static_cast<double>(static_cast<float>(shift)) : shift;
}

// ---------------------------------------------------------------- pack

struct Parts {
  std::uint16_t plane[kPlanes];
  unsigned needed;
};

// Three bfloat16 numbers whose sum is x; each difference is exact. Infinity and NaN stay in the first.
STREAMCCA_DEVICE Parts split(float x) {
  Parts parts = {{to_bfloat16(x), 0, 0}, 1};
  const float head = from_bfloat16(parts.plane[0]);
  if (!(head - head == 0)) return parts;
  const float rest = x - head;
  if (rest == 0) return parts;
  parts.plane[1] = to_bfloat16(rest);
  parts.plane[2] = to_bfloat16(rest - from_bfloat16(parts.plane[1]));
  parts.needed = (parts.plane[2] & 0x7fffu) ? 3 : 2;
  return parts;
}

STREAMCCA_DEVICE float shifted(const Rows& rows, std::size_t row, std::size_t column, float shift) {
  if (rows.dtype == DType::f64) return static_cast<float>(element_as_double(rows, row, column) - static_cast<double>(shift));
  return element_as_float(rows, row, column) - shift;
}
STREAMCCA_DEVICE double shifted(const Rows& rows, std::size_t row, std::size_t column, double shift) {
  return element_as_double(rows, row, column) - shift;
}

// A piece is kRowsAtOnce slots, from a multiple of it on, of one group. It goes through shared memory, so that reading follows the batch's
// strides and writing the packed rows; then each thread takes one strip of one column, whose sums so have one order however the rows come.
template <class T>
STREAMCCA_DEVICE void pack_piece(const Pack& job) {
  constexpr std::size_t pitch = kTile + 1;  // columns then fall into different banks
  T* tile = reinterpret_cast<T*>(shared_memory());
  double* roots = reinterpret_cast<double*>(shared_memory() + sizeof(double) * kRowsAtOnce * pitch);
  unsigned* needed = reinterpret_cast<unsigned*>(roots + kRowsAtOnce);  // planes
  unsigned* moved = needed + 1;                                         // whether any column of the group has a shift
  const Rows& rows = job.batch.rows;
  const std::size_t groups = ceil_div(rows.cols, kTile);
  const std::size_t piece = block_index() / groups + job.slot / kRowsAtOnce, own = block_index() % groups;
  const std::size_t group = job.group + own, begin = piece * kRowsAtOnce;

  if (thread_index() == 0) *needed = 1, *moved = 0;
  if (thread_index() < kRowsAtOnce) {
    const std::size_t slot = begin + thread_index();
    const bool ours = slot >= job.slot && slot < job.slot + job.batch.count;
    const double root = ours ? root_of(job.batch, slot - job.slot, row_of(job.batch, slot - job.slot)) : 0;
    roots[thread_index()] = root;
  }
  sync_block();
  if (thread_index() < kTile && job.shift[group * kTile + thread_index()] != 0) atomic_max(moved, 1u);
  const bool by_rows = rows_lie_closer(rows);
  for (std::size_t e = thread_index(); e < kRowsAtOnce * kTile; e += kThreads) {
    const Place place = place_of(e, by_rows);
    const std::size_t slot = begin + place.row, column = own * kTile + place.column;
    T value = 0;
    if (slot >= job.slot && slot < job.slot + job.batch.count && column < rows.cols && roots[place.row] > 0) {
      const std::size_t row = row_of(job.batch, slot - job.slot);
      value = shifted(rows, row, column, static_cast<T>(job.shift[group * kTile + place.column])) * static_cast<T>(roots[place.row]);
    }
    tile[place.row * pitch + place.column] = value;
  }
  sync_block();

  const std::size_t column = thread_index() % kTile, strip_begin = begin + thread_index() / kTile * kStrip;
  const std::size_t from = strip_begin > job.slot ? strip_begin : job.slot;
  const std::size_t end = job.slot + job.batch.count < strip_begin + kStrip ? job.slot + job.batch.count : strip_begin + kStrip;
  const bool first_plane_only = job.narrow && *moved == 0, half_plane = job.half && *moved == 0;
  unsigned most = 1;
  if (from < end) {
    const std::size_t sums_at = strip_begin / kStrip * job.columns + group * kTile + column;
    double sum = from > strip_begin ? job.strip_sums[sums_at] : 0, squares = from > strip_begin ? job.strip_squares[sums_at] : 0;
    for (std::size_t slot = from; slot < end; ++slot) {
      const T value = tile[(slot - begin) * pitch + column];
      const double p = static_cast<double>(value);
      sum += roots[slot - begin] * p;
      squares += p * p;
      if constexpr (sizeof(T) == sizeof(float)) {
        auto* planes = static_cast<std::uint16_t*>(job.packed);
        const Parts parts = split(value);
        if (parts.needed > most) most = parts.needed;
        planes[plane_index(group, 0, job.depth, slot) + column] = parts.plane[0];
        for (std::size_t plane = 1; plane < kPlanes && !first_plane_only; ++plane)
          planes[plane_index(group, plane, job.depth, slot) + column] = parts.plane[plane];
        if (half_plane) planes[plane_index(group, kHalfPlane, job.depth, slot) + column] = to_half(value);
      } else {
        static_cast<double*>(job.packed)[double_index(group, job.depth, slot) + column] = value;
      }
    }
    job.strip_sums[sums_at] = sum;
    job.strip_squares[sums_at] = squares;
  }
  if constexpr (sizeof(T) == sizeof(float)) {
    if (most > 1) atomic_max(needed, most);
    sync_block();
    if (thread_index() == 0 && *needed > 1) atomic_max(&job.planes[group], *needed);
    // The same from all pieces of a launch, and once 0 in a block it stays 0.
    if (thread_index() == 0) job.halves[group] = half_plane ? 1 : 0;
  }
}

STREAMCCA_KERNEL void pack_kernel32(Pack job) {
  if (is_void(job.ticket.status, job.ticket.batch)) return;
  pack_piece<float>(job);
}
STREAMCCA_KERNEL void pack_kernel64(Pack job) {
  if (is_void(job.ticket.status, job.ticket.batch)) return;
  pack_piece<double>(job);
}

template <bool kWide>
STREAMCCA_DEVICE void blank_values(const Blank& job) {
  const std::size_t e = block_index() * kThreads + thread_index();
  const std::size_t planes = kWide ? 1 : job.planes;
  if (e >= job.groups * planes * job.count * kTile) return;
  const std::size_t column = e % kTile, row = job.slot + e / kTile % job.count;
  const std::size_t plane = job.plane + e / kTile / job.count % planes, group = job.group + e / kTile / job.count / planes;
  if constexpr (kWide) {
    static_cast<double*>(job.packed)[double_index(group, job.depth, row) + column] = 0;
  } else {
    static_cast<std::uint16_t*>(job.packed)[plane_index(group, plane, job.depth, row) + column] = 0;
  }
}
STREAMCCA_KERNEL void blank_kernel32(Blank job) {
  if (is_void(job.ticket.status, job.ticket.batch)) return;
  blank_values<false>(job);
}
STREAMCCA_KERNEL void blank_kernel64(Blank job) {
  if (is_void(job.ticket.status, job.ticket.batch)) return;
  blank_values<true>(job);
}

STREAMCCA_KERNEL void columns_kernel(ColumnSums job) {
  if (is_void(job.ticket.status, job.ticket.batch)) return;
  const std::size_t column = block_index() * kThreads + thread_index();
  if (column >= job.columns) return;
  double sum = 0, squares = 0;
  for (std::size_t strip = 0; strip < job.strips; ++strip) {
    sum += job.strip_sums[strip * job.columns + column];
    squares += job.strip_squares[strip * job.columns + column];
  }
  job.sums[column] += sum;
  job.squares[column] += squares;
  if (job.planes && column % kTile == 0) job.planes[column / kTile] = 1;
}

}  // namespace

void check_rows(const Check& check, Stream stream) {
  launch(&check_kernel, ceil_div(check.batch.count, kRowsAtOnce) * ceil_div(check.batch.rows.cols, kTile), kThreads, 0, stream, check);
}

void count_skipped(const Count& count, Stream stream) { launch(&count_kernel, 1, 32, 0, stream, count); }

void fill_head(const HeadRows& job, Stream stream) {
  launch(&head_kernel, ceil_div(job.batch.count * ceil_div(job.batch.rows.cols, kTile) * kTile, kThreads), kThreads, 0, stream, job);
}

void choose_shift(const ShiftChoice& job, Stream stream) {
  launch(&shift_kernel, ceil_div(job.columns, kThreads), kThreads, 0, stream, job);
}

void pack_rows(const Pack& job, Products products, Stream stream) {
  if (job.batch.count == 0) return;
  const std::size_t pieces = (job.slot + job.batch.count - 1) / kRowsAtOnce - job.slot / kRowsAtOnce + 1;
  const std::size_t shared = sizeof(double) * (kRowsAtOnce * (kTile + 1) + kRowsAtOnce) + 2 * sizeof(unsigned);
  launch(products == Products::f32 ? &pack_kernel32 : &pack_kernel64, pieces * ceil_div(job.batch.rows.cols, kTile), kThreads, shared,
         stream, job);
}

void blank_slots(const Blank& job, Products products, Stream stream) {
  const std::size_t planes = products == Products::f64 ? 1 : job.planes;
  launch(products == Products::f32 ? &blank_kernel32 : &blank_kernel64, ceil_div(job.groups * planes * job.count * kTile, kThreads),
         kThreads, 0, stream, job);
}

void add_columns(const ColumnSums& job, Stream stream) {
  launch(&columns_kernel, ceil_div(job.columns, kThreads), kThreads, 0, stream, job);
}

}  // namespace streamcca::cuda
