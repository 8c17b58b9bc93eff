// The first two rungs of the ladder: entry by entry in float64, which everything else is tested against, and tiles on the ordinary units.
#include "cuda/device.h"
#include "cuda/kernels.h"

namespace streamcca::cuda {
namespace {

template <class T>
STREAMCCA_DEVICE T value_at(const Product& job, std::size_t group, std::size_t row, std::size_t column) {
  if constexpr (sizeof(T) == sizeof(double)) {
    return static_cast<const double*>(job.packed.plane[0])[double_place(group, job.packed.rows, row, column)];
  } else {
    const std::size_t place = plane_place(group, job.packed.rows, row, column);
    if (job.halves[group]) return from_half(static_cast<const std::uint16_t*>(job.packed.plane[kHalfPlane])[place]);
    T sum = 0;
    for (std::size_t p = job.planes[group]; p-- > 0;) sum += from_bfloat16(static_cast<const std::uint16_t*>(job.packed.plane[p])[place]);
    return sum;
  }
}

template <class T>
STREAMCCA_DEVICE void multiply_entry(const Product& job) {
  const std::size_t e = block_index() * kThreads + thread_index();
  const Task task = job.tasks[e / kTileSize];
  const std::size_t row = e % kTileSize / kTile, column = e % kTile;
  double sum = 0;
#pragma unroll 1  // this rung is for being right
  for (std::size_t k = 0; k < job.rows; ++k) {
    sum += static_cast<double>(value_at<T>(job, task.row_group, k, row)) * static_cast<double>(value_at<T>(job, task.col_group, k, column));
  }
  job.target[e] += sum;
}

STREAMCCA_KERNEL void naive_kernel32(Product job) {
  if (!is_void(job.ticket.status, job.ticket.batch)) multiply_entry<float>(job);
}
STREAMCCA_KERNEL void naive_kernel64(Product job) {
  if (!is_void(job.ticket.status, job.ticket.batch)) multiply_entry<double>(job);
}

// One tile by 16 x 16 threads, each 8 x 8 entries 16 apart; 8 rows at a time through shared memory. Sums of kPromoteNarrow rows in T, then
// float64.
template <class T>
STREAMCCA_DEVICE void multiply_tile(const Product& job) {
  constexpr std::size_t rows_at_once = 8, entries = 8;
  const Task task = job.tasks[block_index() / job.splits];
  const std::size_t begin = block_index() % job.splits * job.part, end = begin + job.part < job.rows ? begin + job.part : job.rows;
  double* out = job.splits > 1 ? job.parts + block_index() * kTileSize : job.target + block_index() * kTileSize;
  T* left = reinterpret_cast<T*>(shared_memory());
  T* right = left + rows_at_once * kTile;
  const std::size_t down = thread_index() / 16, across = thread_index() % 16;

  T sums[entries][entries] = {};
  const auto settle = [&](bool fresh) {
#pragma unroll
    for (std::size_t i = 0; i < entries; ++i) {
#pragma unroll
      for (std::size_t j = 0; j < entries; ++j) {
        double& entry = out[(down + 16 * i) * kTile + across + 16 * j];
        entry = (fresh ? 0 : entry) + static_cast<double>(sums[i][j]);
        sums[i][j] = 0;
      }
    }
  };
  if (job.splits > 1) settle(true);
  for (std::size_t k = begin; k < end; k += rows_at_once) {
    for (std::size_t e = thread_index(); e < rows_at_once * kTile; e += kThreads) {
      const std::size_t row = k + e / kTile;
      left[e] = row < end ? value_at<T>(job, task.row_group, row, e % kTile) : T(0);
      right[e] = row < end ? value_at<T>(job, task.col_group, row, e % kTile) : T(0);
    }
    sync_block();
    for (std::size_t r = 0; r < rows_at_once; ++r) {
      T a[entries], b[entries];
#pragma unroll
      for (std::size_t i = 0; i < entries; ++i) a[i] = left[r * kTile + down + 16 * i], b[i] = right[r * kTile + across + 16 * i];
#pragma unroll
      for (std::size_t i = 0; i < entries; ++i) {
#pragma unroll
        for (std::size_t j = 0; j < entries; ++j) sums[i][j] += a[i] * b[j];
      }
    }
    sync_block();
    if ((k - begin) % kPromoteNarrow == kPromoteNarrow - rows_at_once) settle(false);
  }
  settle(false);
}

STREAMCCA_KERNEL void tiled_kernel32(Product job) {
  if (!is_void(job.ticket.status, job.ticket.batch)) multiply_tile<float>(job);
}
STREAMCCA_KERNEL void tiled_kernel64(Product job) {
  if (!is_void(job.ticket.status, job.ticket.batch)) multiply_tile<double>(job);
}

// Adds the parts of each tile, the first one first.
STREAMCCA_KERNEL void gather_kernel(Product job) {
  if (is_void(job.ticket.status, job.ticket.batch)) return;
  const std::size_t e = block_index() * kThreads + thread_index();
  const std::size_t tile = e / kTileSize, place = e % kTileSize;
  double sum = 0;
  for (std::size_t split = 0; split < job.splits && split * job.part < job.rows; ++split)
    sum += job.parts[(tile * job.splits + split) * kTileSize + place];
  job.target[e] += sum;
}

}  // namespace

void multiply_on_ordinary_units(const Product& job, Products products, Ladder ladder, Stream stream) {
  if (ladder == Ladder::naive) {
    launch(products == Products::f32 ? &naive_kernel32 : &naive_kernel64, job.count * kTileSize / kThreads, kThreads, 0, stream, job);
  } else {
    launch(products == Products::f32 ? &tiled_kernel32 : &tiled_kernel64, job.count * job.splits, kThreads,
           2 * 8 * kTile * (products == Products::f32 ? sizeof(float) : sizeof(double)), stream, job);
  }
}

void multiply(const Product& job, Products products, Ladder ladder, Stream stream) {
  if (ladder == Ladder::naive || ladder == Ladder::tiled) {
    multiply_on_ordinary_units(job, products, ladder, stream);
  } else if (products == Products::f32 && ladder == Ladder::hopper) {
    multiply_planes_by_groups(job, stream);
  } else if (products == Products::f32) {
    multiply_planes(job, stream);
  } else if (ladder == Ladder::hopper) {
    multiply_doubles_by_groups(job, stream);
  } else {
    multiply_doubles(job, stream);
  }
  if (job.splits > 1 && ladder != Ladder::naive) launch(&gather_kernel, job.count * kTileSize / kThreads, kThreads, 0, stream, job);
}

}  // namespace streamcca::cuda
