// Float32 products on tensor cores that multiply bfloat16 numbers: a value is the sum of up to three of them, so its products are the sum
// of up to six products of planes (the three smallest, below 2^-25 of the whole, are left out): Henry, Tang & Heinecke (2019), "Leveraging
// the bfloat16 artificial intelligence datatype for higher-precision computations". Blocks of bfloat16 values take one.
//
// Tensor cores cut sums off instead of rounding them, which on a diagonal, where all terms are positive, adds up. So their chains are
// short: after kPromoteNarrow rows, or kPromoteWide with the planes' products in ascending order of size, sums go into float32 sums that
// round (Ootomo & Yokota, 2022), and these into the float64 state at the end of the block, with several planes every kSettleWide rows.
#include "cuda/device.h"
#include "cuda/kernels.h"

namespace streamcca::cuda {
namespace {

constexpr unsigned kStageBytes = kStage * kTile * sizeof(std::uint16_t);  // of one plane of one operand
constexpr unsigned kNarrowStages = 4, kWideStages = 2;
constexpr unsigned kSharedBytes = kWideStages * 2 * kPlanes * kStageBytes;
static_assert(kNarrowStages * 2 * kStageBytes <= kSharedBytes && kSharedBytes <= 99 * 1024, "also cards of 99 KB a block");

// 8 warps: 2 down, 4 across; each has 64 x 32 entries, as 4 x 4 products of 16 x 8.
constexpr int kDown = 4, kAcross = 4;

struct Sums {
  float v[kDown][kAcross][4];
};

STREAMCCA_DEVICE void clear(Sums& sums) {
#pragma unroll
  for (int i = 0; i < kDown; ++i) {
#pragma unroll
    for (int j = 0; j < kAcross; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums.v[i][j][e] = 0;
    }
  }
}

STREAMCCA_DEVICE void promote(Sums& total, Sums& sums) {
#pragma unroll
  for (int i = 0; i < kDown; ++i) {
#pragma unroll
    for (int j = 0; j < kAcross; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        total.v[i][j][e] += sums.v[i][j][e];
        sums.v[i][j][e] = 0;
      }
    }
  }
}

// kStage rows of one plane of one group: 512 chunks of 16 bytes, two for each thread.
STREAMCCA_DEVICE void load_plane(const Product& job, std::size_t group, std::size_t plane, std::size_t row, unsigned char* to) {
  const std::size_t within = row % kSlabRows;
  const auto* slab = reinterpret_cast<const unsigned char*>(static_cast<const std::uint16_t*>(job.packed.plane[plane]) +
                                                            row_index(group, job.packed.rows, row - within));
#pragma unroll
  for (unsigned i = 0; i < kStageBytes / 16 / kThreads; ++i) {
    const unsigned e = thread_index() + i * kThreads;
    copy_async(to + 16 * narrow_chunk(e / 16, e % 16), slab + 16 * slab_chunk(static_cast<unsigned>(within) + e / 16, e % 16));
  }
}

// What the tensor cores multiply in a tile: the only plane of each side, all planes, or the planes of float16 numbers.
enum class Kind { narrow, wide, half };

// Adds the products of kStage rows of one plane of each operand. Both lie with rows of 128 columns, so both fragments are loaded
// transposed.
template <bool kHalf>
STREAMCCA_DEVICE void multiply_stage(const unsigned char* left, const unsigned char* right, Sums& sums) {
  const unsigned warp = thread_index() / 32, lane = thread_index() % 32;
  const unsigned matrix = lane / 8, line = lane % 8;
  // In chunks of 8 columns.
  const unsigned first_left = warp / 4 * 8, first_right = warp % 4 * 4;
#pragma unroll
  for (unsigned k = 0; k < kStage; k += 16) {
    std::uint32_t b[2][4];
#pragma unroll
    for (unsigned j = 0; j < 2; ++j) {  // matrices: rows 0-7 and 8-15 of one chunk, then of the next
      const unsigned row = k + matrix % 2 * 8 + line, chunk = first_right + 2 * j + matrix / 2;
      load_matrices_transposed(right + 16 * narrow_chunk(row, chunk), b[j]);
    }
#pragma unroll
    for (unsigned i = 0; i < kDown; ++i) {  // matrices: two chunks of rows 0-7, the same of rows 8-15
      std::uint32_t a[4];
      const unsigned row = k + matrix / 2 * 8 + line, chunk = first_left + 2 * i + matrix % 2;
      load_matrices_transposed(left + 16 * narrow_chunk(row, chunk), a);
#pragma unroll
      for (unsigned j = 0; j < kAcross; ++j) {
        if constexpr (kHalf) {
          multiply_float16(sums.v[i][j], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        } else {
          multiply_bfloat16(sums.v[i][j], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
  }
}

template <Kind kKind>
STREAMCCA_DEVICE void multiply_rows(const Product& job, Task task, std::size_t begin, std::size_t end, Sums& total) {
  constexpr bool kWide = kKind == Kind::wide;
  constexpr unsigned stages = kWide ? kWideStages : kNarrowStages;
  constexpr unsigned planes = kWide ? kPlanes : 1;  // in memory
  constexpr unsigned promote_after = static_cast<unsigned>((kWide ? kPromoteWide : kPromoteNarrow) / kStage);
  const unsigned left_planes = kWide ? job.planes[task.row_group] : 1, right_planes = kWide ? job.planes[task.col_group] : 1;
  unsigned char* memory = shared_memory();
  const auto load = [&](std::size_t stage) {
    unsigned char* to = memory + stage % stages * (2 * planes * kStageBytes);
    const std::size_t row = begin + stage * kStage;
    constexpr std::size_t first = kKind == Kind::half ? kHalfPlane : 0;
    for (unsigned plane = 0; plane < left_planes; ++plane) load_plane(job, task.row_group, first + plane, row, to + plane * kStageBytes);
    for (unsigned plane = 0; plane < right_planes; ++plane)
      load_plane(job, task.col_group, first + plane, row, to + (planes + plane) * kStageBytes);
  };

  const std::size_t count = (end - begin + kStage - 1) / kStage;
  for (std::size_t stage = 0; stage < stages - 1; ++stage) {
    if (stage < count) load(stage);
    commit_copies();
  }
  Sums sums;
  clear(sums);
  for (std::size_t stage = 0; stage < count; ++stage) {
    wait_copies<static_cast<int>(stages) - 2>();
    sync_block();  // all copies of this stage have come, and all threads are done with the one before, whose memory is next
    if (stage + stages - 1 < count) load(stage + stages - 1);
    commit_copies();
    const unsigned char* left = memory + stage % stages * (2 * planes * kStageBytes);
    const unsigned char* right = left + planes * kStageBytes;
    if constexpr (kWide) {
      for (unsigned order = kPlanes; order-- > 0;) {  // the smallest products first
        for (unsigned plane = 0; plane <= order; ++plane) {
          if (plane < left_planes && order - plane < right_planes)
            multiply_stage<false>(left + plane * kStageBytes, right + (order - plane) * kStageBytes, sums);
        }
      }
    } else {
      multiply_stage<kKind == Kind::half>(left, right, sums);
    }
    if ((stage + 1) % promote_after == 0) promote(total, sums);
  }
  promote(total, sums);
  wait_copies<0>();
}

// A part of a block has memory of its own, which `fresh` sums start.
STREAMCCA_DEVICE void add_to_state(const Product& job, const Sums& total, bool fresh) {
  double* out = job.splits > 1 ? job.parts + block_index() * kTileSize : job.target + block_index() * kTileSize;
  const unsigned warp = thread_index() / 32, lane = thread_index() % 32;
#pragma unroll
  for (int i = 0; i < kDown; ++i) {
#pragma unroll
    for (int j = 0; j < kAcross; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const unsigned row = warp / 4 * 64 + static_cast<unsigned>(i) * 16 + lane / 4 + (e >= 2 ? 8 : 0);
        const unsigned column = warp % 4 * 32 + static_cast<unsigned>(j) * 8 + lane % 4 * 2 + (static_cast<unsigned>(e) & 1u);
        double& entry = out[row * kTile + column];
        entry = (fresh ? 0 : entry) + static_cast<double>(total.v[i][j][e]);
      }
    }
  }
}

STREAMCCA_KERNEL void planes_kernel(Product job) {
  if (is_void(job.ticket.status, job.ticket.batch)) return;
  const Task task = job.tasks[block_index() / job.splits];
  const std::size_t begin = block_index() % job.splits * job.part;
  if (begin >= job.rows) return;
  const std::size_t end = begin + job.part < job.rows ? begin + job.part : job.rows;
  Sums total;
  clear(total);
  if (job.halves[task.row_group] && job.halves[task.col_group]) {  // they may be alone
    multiply_rows<Kind::half>(job, task, begin, end, total);
    add_to_state(job, total, job.splits > 1);
  } else if (job.planes[task.row_group] == 1 && job.planes[task.col_group] == 1) {
    multiply_rows<Kind::narrow>(job, task, begin, end, total);
    add_to_state(job, total, job.splits > 1);
  } else {
    for (std::size_t first = begin; first < end; first += kSettleWide) {
      clear(total);
      multiply_rows<Kind::wide>(job, task, first, first + kSettleWide < end ? first + kSettleWide : end, total);
      add_to_state(job, total, first == begin && job.splits > 1);
      sync_block();  // the memory of the last stages is next
    }
  }
}

}  // namespace

void multiply_planes(const Product& job, Stream stream) {
  launch(&planes_kernel, job.count * job.splits, kThreads, kSharedBytes, stream, job);
}

}  // namespace streamcca::cuda
