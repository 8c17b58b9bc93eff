// Float64 products on the tensor cores of data-center cards (mma.m8n8k4.f64, on Hopper m16n8k16), which round like fused multiply-adds.
// Cards without them run the same instructions, slowly. Packed rows already lie as fragments are loaded.
//
// 8 warps, 2 down and 4 across, have 64 x 32 entries of a tile each. On Hopper a ring of slots feeds them: with stages that all threads
// copy and wait for together, all warps load fragments at once while the tensor cores idle (67 % of their peak on an H200).
#include "cuda/device.h"
#include "cuda/kernels.h"
#include "cuda/ring.h"

namespace streamcca::cuda {
namespace {

constexpr unsigned kRows = 16;                                    // of a stage, and of a product
constexpr unsigned kStageBytes = kRows * kTile * sizeof(double);  // of one operand
constexpr unsigned kStages = 3;
constexpr unsigned kSharedBytes = kStages * 2 * kStageBytes;
static_assert(kSharedBytes <= 99 * 1024, "also cards of 99 KB a block");
using Ring = SlotRing<6, 2 * kStageBytes>;

constexpr int kDown = 4, kAcross = 4;  // products of 16 x 8 of a warp

struct Sums {
  double v[kDown][kAcross][4];
};

STREAMCCA_DEVICE const unsigned char* stage_of(const Product& job, std::size_t group, std::size_t row) {
  return reinterpret_cast<const unsigned char*>(static_cast<const double*>(job.packed.plane[0]) + row_index(group, job.packed.rows, row));
}

// Stages are copied whole: rows from `job.rows` to the next multiple of a stage are zero.
STREAMCCA_DEVICE void load_group(const Product& job, std::size_t group, std::size_t row, unsigned char* to) {
  const unsigned char* from = stage_of(job, group, row);
#pragma unroll
  for (unsigned i = 0; i < kStageBytes / 16 / kThreads; ++i) {
    const unsigned e = thread_index() + i * kThreads;
    copy_async(to + 16 * e, from + 16 * e);
  }
}

STREAMCCA_DEVICE double value_at(const unsigned char* stage, unsigned row, unsigned column) {
  return *reinterpret_cast<const double*>(stage + 16 * double_chunk(row, column / 2) + 8 * (column % 2));
}

STREAMCCA_DEVICE unsigned first_row() { return thread_index() / 128 * 64; }
STREAMCCA_DEVICE unsigned first_column() { return thread_index() / 32 % 4 * 32; }

STREAMCCA_DEVICE void multiply_stage(const unsigned char* left, const unsigned char* right, Sums& sums) {
  const unsigned lane = thread_index() % 32;
  double b[kAcross][4];  // element i of a fragment is 4 rows after the one before
#pragma unroll
  for (unsigned j = 0; j < kAcross; ++j) {
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) b[j][i] = value_at(right, 4 * i + lane % 4, first_column() + 8 * j + lane / 4);
  }
#pragma unroll
  for (unsigned i = 0; i < kDown; ++i) {
    double a[8];  // two halves of 8 columns in turn
#pragma unroll
    for (unsigned e = 0; e < 8; ++e) a[e] = value_at(left, e / 2 * 4 + lane % 4, first_row() + 16 * i + e % 2 * 8 + lane / 4);
#pragma unroll
    for (unsigned j = 0; j < kAcross; ++j) multiply_float64(sums.v[i][j], a, b[j]);
  }
}

STREAMCCA_DEVICE void add_to_state(const Product& job, const Sums& sums) {
  const bool partial = job.splits > 1;
  double* out = partial ? job.parts + block_index() * kTileSize : job.target + block_index() * kTileSize;
  const unsigned lane = thread_index() % 32;
#pragma unroll
  for (unsigned i = 0; i < kDown; ++i) {
#pragma unroll
    for (unsigned j = 0; j < kAcross; ++j) {
#pragma unroll
      for (unsigned e = 0; e < 4; ++e) {
        double& entry = out[(first_row() + 16 * i + e / 2 * 8 + lane / 4) * kTile + first_column() + 8 * j + lane % 4 * 2 + e % 2];
        entry = (partial ? 0 : entry) + sums.v[i][j][e];
      }
    }
  }
}

// The part of the rows of a tile that a block of threads takes.
struct Span {
  Task task;
  std::size_t begin, stages;
};
STREAMCCA_DEVICE Span span_of(const Product& job) {
  const std::size_t begin = block_index() % job.splits * job.part;
  const std::size_t end = begin + job.part < job.rows ? begin + job.part : job.rows;
  return {job.tasks[block_index() / job.splits], begin, begin < end ? (end - begin + kRows - 1) / kRows : 0};
}

STREAMCCA_KERNEL void doubles_kernel(Product job) {
  if (is_void(job.ticket.status, job.ticket.batch)) return;
  const Span span = span_of(job);
  if (span.stages == 0) return;
  unsigned char* memory = shared_memory();
  const auto load = [&](std::size_t stage) {
    unsigned char* to = memory + stage % kStages * (2 * kStageBytes);
    load_group(job, span.task.row_group, span.begin + stage * kRows, to);
    load_group(job, span.task.col_group, span.begin + stage * kRows, to + kStageBytes);
  };
  Sums sums = {};
  for (std::size_t stage = 0; stage < kStages - 1; ++stage) {
    if (stage < span.stages) load(stage);
    commit_copies();
  }
  for (std::size_t stage = 0; stage < span.stages; ++stage) {
    wait_copies<static_cast<int>(kStages) - 2>();
    sync_block();
    if (stage + kStages - 1 < span.stages) load(stage + kStages - 1);
    commit_copies();
    const unsigned char* left = memory + stage % kStages * (2 * kStageBytes);
    multiply_stage(left, left + kStageBytes, sums);
  }
  wait_copies<0>();
  add_to_state(job, sums);
}

STREAMCCA_GROUPS_KERNEL void doubles_ring_kernel(Product job) {
  if (is_void(job.ticket.status, job.ticket.batch)) return;
  const Span span = span_of(job);
  if (span.stages == 0) return;
  const unsigned memory = shared_address(shared_memory());
  Ring ring;
  ring.place(memory);
  if (thread_index() == 0) {
    ring.start(kMultiplying / 32);
    barriers_started();
  }
  sync_block();

  if (thread_index() >= kMultiplying) {
    give_registers();
    if (thread_index() != kMultiplying) return;
    for (; ring.next < span.stages; ++ring.next) {
      const std::size_t row = span.begin + ring.next * kRows;
      ring.wait_empty(ring.next);
      barrier_announce(ring.full_at(ring.next), 2 * kStageBytes);
      copy_bulk(ring.slot(ring.next), stage_of(job, span.task.row_group, row), kStageBytes, ring.full_at(ring.next));
      copy_bulk(ring.slot(ring.next) + kStageBytes, stage_of(job, span.task.col_group, row), kStageBytes, ring.full_at(ring.next));
    }
    return;
  }
  take_registers();
  Sums sums = {};
  for (; ring.next < span.stages; ++ring.next) {
    ring.wait_full(ring.next);
    const unsigned char* left = shared_memory() + (ring.slot(ring.next) - memory);
    multiply_stage(left, left + kStageBytes, sums);
    sync_warp();  // for all lanes, which have read
    if (thread_index() % 32 == 0) barrier_arrive(ring.empty_at(ring.next));
  }
  add_to_state(job, sums);
}

}  // namespace

void multiply_doubles(const Product& job, Stream stream) {
  launch(&doubles_kernel, job.count * job.splits, kThreads, kSharedBytes, stream, job);
}

void multiply_doubles_by_groups(const Product& job, Stream stream) {
  launch(&doubles_ring_kernel, job.count * job.splits, kGroupThreads, Ring::kBytes, stream, job);
}

}  // namespace streamcca::cuda
