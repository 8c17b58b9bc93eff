// Rows into the slots of a block: shifted, weighted, split into planes; and the sums of their columns, strip by strip.
#include "cuda/batch_rows.h"
#include "cuda/device.h"
#include "cuda/kernels.h"

namespace streamcca::cuda {
namespace {

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

// A piece is some slots, from a multiple of their number on, of one group: a slab of planes. It goes through shared memory, so that reading
// follows the batch's strides and writing the packed rows; and each thread takes strips of one column, whose sums so have one order however
// the rows come.
template <class T>
struct Piece {
  static constexpr std::size_t rows = sizeof(T) == sizeof(float) ? kSlabRows : 32;
  static constexpr std::size_t pitch = kTile + 16 / sizeof(T);  // rows stay aligned
  static constexpr std::size_t bytes = rows * pitch * sizeof(T);
  T* values;
  double* roots;
  unsigned* needed;                           // planes
  unsigned* moved;                            // by warp of columns: whether any of them has a shift
  std::size_t own, group, begin, first, end;  // group of the view, and of all; slots of the piece, and those of them that this batch fills
};
template <class T>
constexpr std::size_t shared_for = Piece<T>::bytes + Piece<T>::rows * sizeof(double) + (1 + kTile / 32) * sizeof(unsigned);

template <class T>
STREAMCCA_DEVICE Piece<T> piece_of(const Pack& job) {
  using P = Piece<T>;
  P piece;
  piece.values = reinterpret_cast<T*>(shared_memory());
  piece.roots = reinterpret_cast<double*>(shared_memory() + P::bytes);
  piece.needed = reinterpret_cast<unsigned*>(piece.roots + P::rows);
  piece.moved = piece.needed + 1;
  const std::size_t groups = ceil_div(job.batch.rows.cols, kTile), last = job.slot + job.batch.count;
  piece.own = block_index() % groups;
  piece.group = job.group + piece.own;
  piece.begin = (block_index() / groups + job.slot / P::rows) * P::rows;
  piece.first = piece.begin > job.slot ? piece.begin : job.slot;
  piece.end = last < piece.begin + P::rows ? last : piece.begin + P::rows;
  return piece;
}

// Eight elements that are not float64, exactly, of rows that lie in chunks.
STREAMCCA_DEVICE void read_eight(const unsigned char* p, DType dtype, float (&x)[8]) {
  if (dtype == DType::f32) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Chunk chunk = load_chunk(p + 16 * i);
#pragma unroll
      for (int j = 0; j < 4; ++j) x[4 * i + j] = from_float_bits(chunk.word[j]);
    }
  } else {
    const Chunk chunk = load_chunk(p);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const auto low = static_cast<std::uint16_t>(chunk.word[j]), high = static_cast<std::uint16_t>(chunk.word[j] >> 16);
      x[2 * j] = dtype == DType::f16 ? from_half(low) : from_bfloat16(low);
      x[2 * j + 1] = dtype == DType::f16 ? from_half(high) : from_bfloat16(high);
    }
  }
}

// Eight values of a row in shared memory, by 16 bytes, in an order in which no two threads of eight want the same bank.
STREAMCCA_DEVICE bool high_half_first(std::size_t chunk) { return chunk / 4 % 2; }
STREAMCCA_DEVICE void store_eight(float* to, std::size_t chunk, const float (&x)[8]) {
  Chunk low, high;
#pragma unroll
  for (int i = 0; i < 4; ++i) low.word[i] = float_bits(x[i]), high.word[i] = float_bits(x[i + 4]);
  auto* halves = reinterpret_cast<Chunk*>(to);
  const bool swap = high_half_first(chunk);
  halves[swap] = swap ? high : low;
  halves[!swap] = swap ? low : high;
}
STREAMCCA_DEVICE void load_eight(const float* from, std::size_t chunk, float (&x)[8]) {
  const auto* halves = reinterpret_cast<const Chunk*>(from);
  const bool swap = high_half_first(chunk);
  const Chunk first = halves[swap], second = halves[!swap];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[i] = from_float_bits(swap ? second.word[i] : first.word[i]);
    x[i + 4] = from_float_bits(swap ? first.word[i] : second.word[i]);
  }
}

// Differences to the shift are formed in the wider type of the row and the products, then rounded.
STREAMCCA_DEVICE void gather_chunks(const Pack& job, const Piece<float>& piece) {
  const Rows& rows = job.batch.rows;
  const std::size_t chunk = thread_index() % 16, column = piece.own * kTile + 8 * chunk;
  float shift[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) shift[i] = static_cast<float>(job.shift[piece.group * kTile + 8 * chunk + i]);
#pragma unroll 4
  for (std::size_t r = thread_index() / 16; r < Piece<float>::rows; r += kThreads / 16) {
    const std::size_t slot = piece.begin + r;
    float x[8] = {};
    if (slot >= piece.first && slot < piece.end && piece.roots[r] > 0) {
      const std::size_t row = row_of(job.batch, slot - job.slot);
      const float root = static_cast<float>(piece.roots[r]);
      if (column + 8 <= rows.cols && rows.dtype != DType::f64) {
        read_eight(rows.element(row, column), rows.dtype, x);
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = (x[i] - shift[i]) * root;
      } else {
        for (std::size_t i = 0; i < 8 && column + i < rows.cols; ++i) x[i] = shifted(rows, row, column + i, shift[i]) * root;
      }
    }
    store_eight(piece.values + r * Piece<float>::pitch + 8 * chunk, chunk, x);
  }
}

// Of float64 rows for float64 products, two values at a time.
STREAMCCA_DEVICE void gather_chunks(const Pack& job, const Piece<double>& piece) {
  constexpr std::size_t across = kTile / 2, at_once = kThreads / across;
  const Rows& rows = job.batch.rows;
  const std::size_t pair = thread_index() % across, column = piece.own * kTile + 2 * pair;
  const double* shift = job.shift + piece.group * kTile + 2 * pair;
  const double shifts[2] = {shift[0], shift[1]};
#pragma unroll 8
  for (std::size_t r = thread_index() / across; r < Piece<double>::rows; r += at_once) {
    const std::size_t slot = piece.begin + r;
    TwoDoubles x{0, 0};
    if (slot >= piece.first && slot < piece.end && piece.roots[r] > 0 && column < rows.cols) {
      const unsigned char* p = rows.element(row_of(job.batch, slot - job.slot), column);
      if (column + 1 < rows.cols) {
        x = *reinterpret_cast<const TwoDoubles*>(p);
        x.y = (x.y - shifts[1]) * piece.roots[r];
      } else {
        x.x = *reinterpret_cast<const double*>(p);
      }
      x.x = (x.x - shifts[0]) * piece.roots[r];
    }
    *reinterpret_cast<TwoDoubles*>(piece.values + r * Piece<double>::pitch + 2 * pair) = x;
  }
}

template <class T>
STREAMCCA_DEVICE void gather_elements(const Pack& job, const Piece<T>& piece) {
  const Rows& rows = job.batch.rows;
  const bool by_rows = rows_lie_closer(rows);
#pragma unroll 4
  for (std::size_t e = thread_index(); e < Piece<T>::rows * kTile; e += kThreads) {
    const Place place = place_of(e, Piece<T>::rows, by_rows);
    const std::size_t slot = piece.begin + place.row, column = piece.own * kTile + place.column;
    T value = 0;
    if (slot >= piece.first && slot < piece.end && column < rows.cols && piece.roots[place.row] > 0) {
      const std::size_t row = row_of(job.batch, slot - job.slot);
      const T shift = static_cast<T>(job.shift[piece.group * kTile + place.column]);
      value = shifted(rows, row, column, shift) * static_cast<T>(piece.roots[place.row]);
    }
    piece.values[place.row * Piece<T>::pitch + place.column] = value;
  }
}

// Where an earlier batch left a strip half full, its sums go on.
template <class T, class Value, class Root>
STREAMCCA_DEVICE void sum_strips(const Pack& job, const Piece<T>& piece, Value value, Root root) {
  for (std::size_t s = thread_index(); s < Piece<T>::rows / kStrip * kTile; s += kThreads) {
    const std::size_t column = s % kTile, begin = piece.begin + s / kTile * kStrip;
    const std::size_t from = begin > piece.first ? begin : piece.first, end = piece.end < begin + kStrip ? piece.end : begin + kStrip;
    if (from >= end) continue;
    const std::size_t at = begin / kStrip * job.columns + piece.group * kTile + column;
    double sum = from > begin ? job.strip_sums[at] : 0, squares = from > begin ? job.strip_squares[at] : 0;
#pragma unroll 8
    for (std::size_t slot = from; slot < end; ++slot) {
      const double p = value(slot - piece.begin, column);
      sum += root(slot - piece.begin) * p;
      squares += p * p;
    }
    job.strip_sums[at] = sum;
    job.strip_squares[at] = squares;
  }
}

STREAMCCA_DEVICE std::uint32_t pair_of(std::uint16_t low, std::uint16_t high) { return low | static_cast<std::uint32_t>(high) << 16; }

// Returns how many planes the values need.
STREAMCCA_DEVICE unsigned write_planes(const Pack& job, const Piece<float>& piece, bool first_plane_only, bool half_plane) {
  unsigned most = 1;
#pragma unroll 2
  for (std::size_t r = thread_index() / 16; r < Piece<float>::rows; r += kThreads / 16) {
    const std::size_t slot = piece.begin + r, chunk = thread_index() % 16;
    if (slot < piece.first || slot >= piece.end) continue;
    float x[8];
    load_eight(piece.values + r * Piece<float>::pitch + 8 * chunk, chunk, x);
    Chunk plane[kPlanes], half;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float low = x[2 * i], high = x[2 * i + 1];
      if (job.alone) {  // float16 numbers
        half.word[i] = pair_of(to_half(low), to_half(high));
      } else if (first_plane_only) {  // bfloat16 numbers
        plane[0].word[i] = float_bits(low) >> 16 | (float_bits(high) & 0xffff0000u);
      } else {
        const Parts a = split(low), b = split(high);
        const unsigned needed = a.needed > b.needed ? a.needed : b.needed;
        most = needed > most ? needed : most;
#pragma unroll
        for (std::size_t p = 0; p < kPlanes; ++p) plane[p].word[i] = pair_of(a.plane[p], b.plane[p]);
        if (half_plane) half.word[i] = pair_of(to_half(low), to_half(high));
      }
    }
    const auto write = [&](std::size_t p, const Chunk& values) {
      auto* to = static_cast<std::uint16_t*>(job.packed.plane[p]);
      *reinterpret_cast<Chunk*>(to + plane_place(piece.group, job.packed.rows, slot, 8 * chunk)) = values;
    };
    if (job.alone || half_plane) write(kHalfPlane, half);
    if (job.alone) continue;
    write(0, plane[0]);
    if (first_plane_only) continue;
    write(1, plane[1]);
    write(2, plane[2]);
  }
  return most;
}

STREAMCCA_DEVICE void write_doubles(const Pack& job, const Piece<double>& piece) {
#pragma unroll 4
  for (std::size_t e = thread_index(); e < Piece<double>::rows * (kTile / 2); e += kThreads) {
    const std::size_t r = e / (kTile / 2), column = e % (kTile / 2) * 2, slot = piece.begin + r;
    if (slot < piece.first || slot >= piece.end) continue;
    *reinterpret_cast<TwoDoubles*>(static_cast<double*>(job.packed.plane[0]) + double_place(piece.group, job.packed.rows, slot, column)) =
        *reinterpret_cast<const TwoDoubles*>(piece.values + r * Piece<double>::pitch + column);
  }
}

template <class T>
STREAMCCA_DEVICE void gather_rows(const Pack& job, const Piece<T>& piece) {
  if (thread_index() < Piece<T>::rows) {
    const std::size_t slot = piece.begin + thread_index();
    const bool ours = slot >= piece.first && slot < piece.end;
    piece.roots[thread_index()] = ours ? root_of(job.batch, slot - job.slot, row_of(job.batch, slot - job.slot)) : 0;
  }
  sync_block();
  if (lies_in_chunks(job.batch.rows) && (sizeof(T) == sizeof(float) || job.batch.rows.dtype == DType::f64)) {
    gather_chunks(job, piece);
  } else {
    gather_elements(job, piece);
  }
  sync_block();
  sum_strips(
      job, piece, [&](std::size_t r, std::size_t c) { return static_cast<double>(piece.values[r * Piece<T>::pitch + c]); },
      [&](std::size_t r) { return piece.roots[r]; });
}

STREAMCCA_KERNEL void pack_kernel32(Pack job) {
  if (is_void(job.ticket.status, job.ticket.batch)) return;
  const Piece<float> piece = piece_of<float>(job);
  if (thread_index() == 0) *piece.needed = 1;
  if (thread_index() < kTile) {
    const unsigned votes = ballot(job.shift[piece.group * kTile + thread_index()] != 0);
    if (thread_index() % 32 == 0) piece.moved[thread_index() / 32] = votes;
  }
  gather_rows(job, piece);
  unsigned moved = 0;
#pragma unroll
  for (std::size_t w = 0; w < kTile / 32; ++w) moved |= piece.moved[w];
  const bool half_plane = job.half && !moved;
  const unsigned most = write_planes(job, piece, job.narrow && !moved, half_plane);
  if (most > 1) atomic_max(piece.needed, most);
  sync_block();
  if (thread_index() != 0) return;
  if (*piece.needed > 1) atomic_max(&job.planes[piece.group], *piece.needed);
  // The same from all pieces of a launch, and once 0 in a block it stays 0.
  job.halves[piece.group] = half_plane ? 1 : 0;
}

// bfloat16 rows as they are, or float16 ones, in chunks of 16 bytes, of a view without shifts: they are copied, and only their sums need
// arithmetic. A kernel of its own, since the other one's registers leave too few threads for the memory's speed.
template <bool kHalf>
STREAMCCA_DEVICE void copy_rows(const Pack& job) {
  constexpr std::size_t across = kTile / 8, at_once = kThreads / across, pieces = kSlabRows / at_once;
  if (is_void(job.ticket.status, job.ticket.batch)) return;
  const Piece<float> piece = piece_of<float>(job);
  const std::size_t chunk = thread_index() % across, column = piece.own * kTile + 8 * chunk;
  auto* slab = reinterpret_cast<Chunk*>(static_cast<std::uint16_t*>(job.packed.plane[kHalf ? kHalfPlane : 0]) +
                                        row_index(piece.group, job.packed.rows, piece.begin));
  auto* rows = reinterpret_cast<Chunk*>(shared_memory());
  Chunk chunks[pieces];
#pragma unroll
  for (std::size_t i = 0; i < pieces; ++i) {
    const std::size_t slot = piece.begin + thread_index() / across + i * at_once;
    const bool ours = slot >= piece.first && slot < piece.end && column < job.batch.rows.cols;
    chunks[i] = ours ? load_chunk(job.batch.rows.element(row_of(job.batch, slot - job.slot), column)) : Chunk{};
  }
#pragma unroll
  for (std::size_t i = 0; i < pieces; ++i) {
    const std::size_t r = thread_index() / across + i * at_once, slot = piece.begin + r;
    rows[r * across + chunk] = chunks[i];
    if (slot >= piece.first && slot < piece.end) slab[slab_chunk(static_cast<unsigned>(r), static_cast<unsigned>(chunk))] = chunks[i];
  }
  if (thread_index() == 0) job.halves[piece.group] = kHalf;
  sync_block();
  const auto* values = reinterpret_cast<const std::uint16_t*>(rows);
  sum_strips(
      job, piece,
      [&](std::size_t r, std::size_t c) {
        return static_cast<double>(kHalf ? from_half(values[r * kTile + c]) : from_bfloat16(values[r * kTile + c]));
      },
      [](std::size_t) { return 1.0; });
}
STREAMCCA_DENSE_KERNEL void plain_kernel(Pack job) { copy_rows<false>(job); }
STREAMCCA_DENSE_KERNEL void plain_halves_kernel(Pack job) { copy_rows<true>(job); }

// A slab of a group.
STREAMCCA_KERNEL void split_kernel(Split job) {
  if (is_void(job.ticket.status, job.ticket.batch)) return;
  const std::size_t group = block_index() % job.groups, begin = block_index() / job.groups * kSlabRows;
  unsigned most = 1;
#pragma unroll 2
  for (std::size_t e = thread_index(); e < kSlabRows * 16; e += kThreads) {
    const std::size_t slot = begin + e / 16, place = plane_place(group, job.packed.rows, slot, e % 16 * 8);
    if (slot >= job.count) continue;
    const auto at = [&](std::size_t p) { return reinterpret_cast<Chunk*>(static_cast<std::uint16_t*>(job.packed.plane[p]) + place); };
    const Chunk half = *at(kHalfPlane);
    Chunk plane[kPlanes];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Parts a = split(from_half(static_cast<std::uint16_t>(half.word[i])));
      const Parts b = split(from_half(static_cast<std::uint16_t>(half.word[i] >> 16)));
      const unsigned needed = a.needed > b.needed ? a.needed : b.needed;
      most = needed > most ? needed : most;
#pragma unroll
      for (std::size_t p = 0; p < kPlanes; ++p) plane[p].word[i] = pair_of(a.plane[p], b.plane[p]);
    }
#pragma unroll
    for (std::size_t p = 0; p < kPlanes; ++p) *at(p) = plane[p];
  }
  if (most > 1) atomic_max(&job.planes[group], most);
}

STREAMCCA_KERNEL void pack_kernel64(Pack job) {
  if (is_void(job.ticket.status, job.ticket.batch)) return;
  const Piece<double> piece = piece_of<double>(job);
  gather_rows(job, piece);
  write_doubles(job, piece);
}

template <class T>
void launch_pack(void (*kernel)(Pack), const Pack& job, std::size_t shared, Stream stream) {
  const std::size_t pieces = (job.slot + job.batch.count - 1) / Piece<T>::rows - job.slot / Piece<T>::rows + 1;
  launch(kernel, pieces * ceil_div(job.batch.rows.cols, kTile), kThreads, shared, stream, job);
}

}  // namespace

void split_halves(const Split& job, Stream stream) {
  launch(&split_kernel, job.groups * ceil_div(job.count, kSlabRows), kThreads, 0, stream, job);
}

void pack_rows(const Pack& job, Products products, Stream stream) {
  if (job.batch.count == 0) return;
  const Batch& batch = job.batch;
  if (products == Products::f64) {
    launch_pack<double>(&pack_kernel64, job, shared_for<double>, stream);
  } else if ((job.narrow || job.alone) && job.unmoved && !batch.roots && !batch.bad && batch.rows.cols % 8 == 0 &&
             lies_in_chunks(batch.rows)) {
    launch_pack<float>(job.alone ? &plain_halves_kernel : &plain_kernel, job, kSlabRows * kTile * sizeof(std::uint16_t), stream);
  } else {
    launch_pack<float>(&pack_kernel32, job, shared_for<float>, stream);
  }
}

}  // namespace streamcca::cuda
