// Float64 products on the tensor cores of data-center cards (mma.m8n8k4.f64), which round like fused multiply-adds. Cards without them run
// the same instruction, slowly.
#include "cuda/device.h"
#include "cuda/kernels.h"

namespace streamcca::cuda {
namespace {

constexpr unsigned kRows = 16;                                    // of a stage
constexpr unsigned kStageBytes = kRows * kTile * sizeof(double);  // of one operand
constexpr unsigned kStages = 3;
constexpr unsigned kSharedBytes = kStages * 2 * kStageBytes;
static_assert(kSharedBytes <= 99 * 1024, "also cards of 99 KB a block");

// 8 warps: 2 down, 4 across; each has 64 x 32 entries, as 8 x 4 products of 8 x 8.
constexpr int kDown = 8, kAcross = 4;

// Stages are copied whole: rows from `job.rows` to the next multiple of a stage are zero.
STREAMCCA_DEVICE void load_group(const Product& job, std::size_t group, std::size_t row, unsigned char* to) {
  const auto* from = reinterpret_cast<const unsigned char*>(static_cast<const double*>(job.packed) + double_index(group, job.depth, row));
#pragma unroll
  for (unsigned i = 0; i < kStageBytes / 16 / kThreads; ++i) {
    const unsigned e = thread_index() + i * kThreads;
    copy_async(to + 16 * double_chunk(e / 64, e % 64), from + 16 * e);
  }
}

STREAMCCA_DEVICE double value_at(const unsigned char* stage, unsigned row, unsigned column) {
  return *reinterpret_cast<const double*>(stage + 16 * double_chunk(row, column / 2) + 8 * (column % 2));
}

STREAMCCA_KERNEL void doubles_kernel(Product job) {
  if (is_void(job.ticket.status, job.ticket.batch)) return;
  const Task task = job.tasks[block_index() / job.splits];
  const std::size_t part = job.depth / job.splits, begin = block_index() % job.splits * part;
  if (begin >= job.rows) return;
  const std::size_t end = begin + part < job.rows ? begin + part : job.rows, count = (end - begin + kRows - 1) / kRows;
  const unsigned warp = thread_index() / 32, lane = thread_index() % 32;
  const unsigned first_row = warp / 4 * 64, first_column = warp % 4 * 32;
  unsigned char* memory = shared_memory();
  const auto load = [&](std::size_t stage) {
    unsigned char* to = memory + stage % kStages * (2 * kStageBytes);
    load_group(job, task.row_group, begin + stage * kRows, to);
    load_group(job, task.col_group, begin + stage * kRows, to + kStageBytes);
  };

  double sums[kDown][kAcross][2] = {};
  for (std::size_t stage = 0; stage < kStages - 1; ++stage) {
    if (stage < count) load(stage);
    commit_copies();
  }
  for (std::size_t stage = 0; stage < count; ++stage) {
    wait_copies<static_cast<int>(kStages) - 2>();
    sync_block();
    if (stage + kStages - 1 < count) load(stage + kStages - 1);
    commit_copies();
    const unsigned char* left = memory + stage % kStages * (2 * kStageBytes);
    const unsigned char* right = left + kStageBytes;
#pragma unroll
    for (unsigned k = 0; k < kRows; k += 4) {
      double b[kAcross];
#pragma unroll
      for (unsigned j = 0; j < kAcross; ++j) b[j] = value_at(right, k + lane % 4, first_column + 8 * j + lane / 4);
#pragma unroll
      for (unsigned i = 0; i < kDown; ++i) {
        const double a = value_at(left, k + lane % 4, first_row + 8 * i + lane / 4);
#pragma unroll
        for (unsigned j = 0; j < kAcross; ++j) multiply_float64(sums[i][j], a, b[j]);
      }
    }
  }
  wait_copies<0>();

  const bool partial = job.splits > 1;
  double* out = partial ? job.parts + block_index() * kTileSize : job.target + block_index() * kTileSize;
#pragma unroll
  for (unsigned i = 0; i < kDown; ++i) {
#pragma unroll
    for (unsigned j = 0; j < kAcross; ++j) {
#pragma unroll
      for (unsigned e = 0; e < 2; ++e) {
        double& entry = out[(first_row + 8 * i + lane / 4) * kTile + first_column + 8 * j + lane % 4 * 2 + e];
        entry = (partial ? 0 : entry) + sums[i][j][e];
      }
    }
  }
}

}  // namespace

void multiply_doubles(const Product& job, Stream stream) {
  launch(&doubles_kernel, job.count * job.splits, kThreads, kSharedBytes, stream, job);
}

}  // namespace streamcca::cuda
