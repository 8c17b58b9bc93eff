// What happens to rows before they are multiplied, packing apart: checked, kept for the shift. And what is summed of packed ones.
#include <cstring>

#include "cuda/batch_rows.h"
#include "cuda/device.h"
#include "cuda/kernels.h"

namespace streamcca::cuda {
namespace {

// ---------------------------------------------------------------- check

constexpr std::size_t kRowsAtOnce = 32;  // of one block of threads, by kTile columns, where rows lie in no chunks
// Of one thread: loads in flight.
constexpr std::size_t chunks_at_once(bool dense) { return dense ? 8 : 4; }

STREAMCCA_DEVICE void judge(const Check& check, std::size_t row, std::size_t column) {
  const double size = fabs(element_as_double(check.batch.rows, row, column));
  if (size <= check.limit) return;
  const bool finite = size < HUGE_VAL;  // false for NaN
  if (check.skip && !finite) {
    check.bad[row] = 1;
    return;
  }
  if (finite) atomic_max(&check.status->too_large, 1ull);
  atomic_min(&check.status->where, (static_cast<unsigned long long>(row) << kViewBits) | check.view);
  atomic_min(&check.status->refused_batch, check.number);
  store_for_host(check.refused, 1);
}

// Whether some value of a chunk may be too large: numbers without their sign grow as their bits do, infinity and NaN beyond all others.
STREAMCCA_DEVICE bool is_suspect(const Chunk& chunk, DType dtype, unsigned long long largest) {
  unsigned long long most = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t word = chunk.word[i];
    if (dtype == DType::f64) {
      if (i % 2) continue;
      const unsigned long long size = (chunk.word[i + 1] & 0x7fffffffull) << 32 | word;
      most = size > most ? size : most;
    } else if (dtype == DType::f32) {
      const std::uint32_t size = word & 0x7fffffffu;
      most = size > most ? size : most;
    } else {
      const std::uint32_t low = word & 0x7fffu, high = word >> 16 & 0x7fffu, size = low > high ? low : high;
      most = size > most ? size : most;
    }
  }
  return most > largest;
}

// Rows that lie in chunks of 16 bytes. Dense ones, behind one another, need no division to be found.
template <bool kDense>
STREAMCCA_DEVICE void check_chunks(const Check& check) {
  constexpr std::size_t at_once = chunks_at_once(kDense);
  const Batch& batch = check.batch;
  const std::size_t elements = 16 / bytes_of(batch.rows.dtype), across = ceil_div(batch.rows.cols, elements);
  const std::size_t whole = batch.rows.cols / elements, total = batch.count * across;
  const std::size_t first = block_index() * (kThreads * at_once) + thread_index();
  // The caller sees to it that 32 bits suffice, which are divided several times as fast.
  const auto row_number = [across](std::size_t e) {
    return std::size_t{static_cast<std::uint32_t>(e) / static_cast<std::uint32_t>(across)};
  };
  Chunk chunks[at_once];
  unsigned suspects = 0;  // bits; the end of a row is one
#pragma unroll
  for (std::size_t i = 0; i < at_once; ++i) {
    const std::size_t e = first + i * kThreads;
    chunks[i] = Chunk{};
    if (e >= total) continue;
    if constexpr (kDense) {
      chunks[i] = load_chunk(batch.rows.row(batch.first) + 16 * e);
    } else {
      const std::size_t k = row_number(e), c = e - k * across;
      if (c < whole) {
        chunks[i] = load_chunk(batch.rows.element(row_of(batch, k), c * elements));
      } else {
        suspects |= 1u << i;
      }
    }
  }
#pragma unroll
  for (std::size_t i = 0; i < at_once; ++i) {
    if (is_suspect(chunks[i], batch.rows.dtype, check.limit_bits)) suspects |= 1u << i;
  }
#pragma unroll 1
  for (std::size_t i = 0; suspects >> i; ++i) {
    if (!(suspects >> i & 1)) continue;
    const std::size_t e = first + i * kThreads, k = row_number(e), begin = (e - k * across) * elements;
    for (std::size_t c = begin; c < begin + elements && c < batch.rows.cols; ++c) judge(check, row_of(batch, k), c);
  }
}

STREAMCCA_DEVICE void check_elements(const Check& check) {
  const Batch& batch = check.batch;
  const std::size_t pieces_across = ceil_div(batch.rows.cols, kTile);
  const std::size_t first_row = block_index() / pieces_across * kRowsAtOnce, first_column = block_index() % pieces_across * kTile;
  const bool by_rows = rows_lie_closer(batch.rows);
  for (std::size_t e = thread_index(); e < kRowsAtOnce * kTile; e += kThreads) {
    const Place place = place_of(e, kRowsAtOnce, by_rows);
    const std::size_t k = first_row + place.row, column = first_column + place.column;
    if (k < batch.count && column < batch.rows.cols) judge(check, row_of(batch, k), column);
  }
}

// All go on where another view of this very batch was refused: the first such row still has to be found.
STREAMCCA_KERNEL void check_dense_kernel(Check check) {
  if (check.status->refused_batch >= check.number) check_chunks<true>(check);
}
STREAMCCA_KERNEL void check_chunks_kernel(Check check) {
  if (check.status->refused_batch >= check.number) check_chunks<false>(check);
}
STREAMCCA_KERNEL void check_elements_kernel(Check check) {
  if (check.status->refused_batch >= check.number) check_elements(check);
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

STREAMCCA_KERNEL void report_kernel(ShiftReport job) {
  if (is_void(job.ticket.status, job.ticket.batch)) return;
  auto* votes = reinterpret_cast<unsigned*>(shared_memory());
  bool moved = false;
  for (std::size_t c = thread_index(); c < job.columns; c += kThreads) moved = moved || job.shift[c] != 0;
  const unsigned vote = ballot(moved);
  if (thread_index() % 32 == 0) votes[thread_index() / 32] = vote;
  sync_block();
  if (thread_index() != 0) return;
  unsigned any = 0;
  for (unsigned w = 0; w < kThreads / 32; ++w) any |= votes[w];
  store_for_host(job.report, any ? kMoved : kUnmoved);
}

// ---------------------------------------------------------------- blank, sum

template <bool kWide>
STREAMCCA_DEVICE void blank_values(const Blank& job) {
  const std::size_t e = block_index() * kThreads + thread_index();
  const std::size_t planes = kWide ? 1 : job.planes;
  if (e >= job.groups * planes * job.count * kTile) return;
  const std::size_t column = e % kTile, row = job.slot + e / kTile % job.count;
  const std::size_t plane = job.plane + e / kTile / job.count % planes, group = job.group + e / kTile / job.count / planes;
  if (job.needed && job.needed[group] > 1) return;
  if constexpr (kWide) {
    static_cast<double*>(job.packed.plane[0])[double_place(group, job.packed.rows, row, column)] = 0;
  } else {
    static_cast<std::uint16_t*>(job.packed.plane[plane])[plane_place(group, job.packed.rows, row, column)] = 0;
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

// 32 columns by kThreads / 32 shares of the strips, each every so many strips; the shares are added in their order.
STREAMCCA_KERNEL void columns_kernel(ColumnSums job) {
  if (is_void(job.ticket.status, job.ticket.batch)) return;
  constexpr std::size_t columns = 32, shares = kThreads / columns, at_once = 8;
  double* totals = reinterpret_cast<double*>(shared_memory());
  const std::size_t own = thread_index() % columns, share = thread_index() / columns, column = block_index() * columns + own;
  double sum = 0, squares = 0;
  for (std::size_t strip = share; strip < job.strips; strip += at_once * shares) {
    double sums[at_once], more[at_once];
#pragma unroll
    for (std::size_t i = 0; i < at_once; ++i) {
      const std::size_t at = (strip + i * shares) * job.columns + column;
      const bool there = strip + i * shares < job.strips;
      sums[i] = there ? job.strip_sums[at] : 0;
      more[i] = there ? job.strip_squares[at] : 0;
    }
#pragma unroll
    for (std::size_t i = 0; i < at_once; ++i) sum += sums[i], squares += more[i];
  }
  totals[share * columns + own] = sum;
  totals[(shares + share) * columns + own] = squares;
  sync_block();
  if (share > 1) return;
  double total = 0;
  for (std::size_t s = 0; s < shares; ++s) total += totals[(share * shares + s) * columns + own];
  (share == 0 ? job.sums : job.squares)[column] += total;
  if (share == 0 && job.planes && column % kTile == 0) job.planes[column / kTile] = 1;
}

}  // namespace

void check_rows(const Check& check, Stream stream) {
  const Rows& rows = check.batch.rows;
  const std::size_t row_bytes = rows.cols * bytes_of(rows.dtype), chunks = check.batch.count * ceil_div(row_bytes, 16);
  const bool dense =
      !check.batch.list && !rows.sample_rows && row_bytes % 16 == 0 && rows.row_stride == static_cast<std::ptrdiff_t>(row_bytes);
  if (!lies_in_chunks(rows) || chunks >= std::size_t{1} << 32) {
    launch(&check_elements_kernel, ceil_div(check.batch.count, kRowsAtOnce) * ceil_div(rows.cols, kTile), kThreads, 0, stream, check);
    return;
  }
  Check job = check;
  const auto single = static_cast<float>(check.limit);
  std::uint32_t bits;
  std::uint64_t wide;
  std::memcpy(&bits, &single, sizeof bits);
  std::memcpy(&wide, &check.limit, sizeof wide);
  if (static_cast<double>(single) > check.limit) --bits;  // it was rounded up
  job.limit_bits = rows.dtype == DType::f64 ? wide : rows.dtype == DType::f32 ? bits : rows.dtype == DType::bf16 ? bits >> 16 : 0x7bff;
  launch(dense ? &check_dense_kernel : &check_chunks_kernel, ceil_div(chunks, kThreads * chunks_at_once(dense)), kThreads, 0, stream, job);
}

void count_skipped(const Count& count, Stream stream) { launch(&count_kernel, 1, 32, 0, stream, count); }

void fill_head(const HeadRows& job, Stream stream) {
  launch(&head_kernel, ceil_div(job.batch.count * ceil_div(job.batch.rows.cols, kTile) * kTile, kThreads), kThreads, 0, stream, job);
}

void choose_shift(const ShiftChoice& job, Stream stream) {
  launch(&shift_kernel, ceil_div(job.columns, kThreads), kThreads, 0, stream, job);
}

void report_shift(const ShiftReport& job, Stream stream) { launch(&report_kernel, 1, kThreads, 32, stream, job); }

void blank_slots(const Blank& job, Products products, Stream stream) {
  const std::size_t planes = products == Products::f64 ? 1 : job.planes;
  launch(products == Products::f32 ? &blank_kernel32 : &blank_kernel64, ceil_div(job.groups * planes * job.count * kTile, kThreads),
         kThreads, 0, stream, job);
}

void add_columns(const ColumnSums& job, Stream stream) {
  launch(&columns_kernel, job.columns / 32, kThreads, 2 * kThreads * sizeof(double), stream, job);
}

}  // namespace streamcca::cuda
