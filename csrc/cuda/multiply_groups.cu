// The products of multiply_planes.cu on Hopper's tensor cores, which take both operands from shared memory and work while the warps that
// asked go on (wgmma): two groups of four warps, each with 64 x 128 entries of a tile. The same planes, the same short chains, whose sums
// go into float32 sums that round.
#include "cuda/device.h"
#include "cuda/kernels.h"

namespace streamcca::cuda {
namespace {

constexpr unsigned kSharedBytes = 192 * 1024;
constexpr unsigned kAtom = 1024;  // bytes of 8 rows of 64 columns, within which chunks are swizzled
constexpr int kSums = 64;         // of a thread

// How the ring of stages lies in shared memory: a slot holds some rows of every plane of both operands. The numbers of planes are known to
// the compiler, so that nothing branches between products, which would make it wait for them.
template <unsigned kLeft, unsigned kRight>
struct Ring {
  static constexpr bool narrow = kLeft == 1 && kRight == 1;
  static constexpr unsigned rows = narrow ? kBlankRows : kStage;
  static constexpr unsigned plane_bytes = rows * kTile * sizeof(std::uint16_t);
  static constexpr unsigned slot_bytes = (kLeft + kRight) * plane_bytes;
  static constexpr unsigned slots = kSharedBytes / slot_bytes;
  static constexpr unsigned promote_after = (narrow ? kPromoteNarrow : kPromoteWide) / rows;
  static_assert(slots >= 4 && promote_after > 0);
};

// Some rows of one plane of one group, by chunks of 16 bytes.
template <class Ring>
STREAMCCA_DEVICE void load_plane(const Product& job, std::size_t group, std::size_t plane, std::size_t row, unsigned char* to) {
  const auto* from =
      reinterpret_cast<const unsigned char*>(static_cast<const std::uint16_t*>(job.packed) + plane_index(group, plane, job.depth, row));
#pragma unroll
  for (unsigned i = 0; i < Ring::rows * 16 / kThreads; ++i) {
    const unsigned e = thread_index() + i * kThreads;
    copy_async(to + 16 * group_chunk(Ring::rows, e / 16, e % 16), from + 16 * e);
  }
}

// What tells the tensor cores where 16 rows of 64 columns, or more blocks of 64, lie, columns behind one another (PTX ISA, "Matrix
// Descriptor Format" and "Canonical Layouts"): the address, the distance of blocks of columns, that of 8 rows, swizzled by 128 bytes.
template <class Ring>
STREAMCCA_DEVICE std::uint64_t descriptor(unsigned address) {
  constexpr std::uint64_t blocks = Ring::rows * 128 / 16, eight_rows = kAtom / 16, swizzle_128 = 1;
  return (address & 0x3ffffu) >> 4 | blocks << 16 | eight_rows << 32 | swizzle_128 << 62;
}

// Adds the products of a slot's rows of one plane of each operand, or starts from them.
template <class Ring, bool kHalf>
STREAMCCA_DEVICE void multiply_slot(unsigned left, unsigned right, float (&sums)[kSums], int& add) {
  const unsigned own_block = left + thread_index() / 128 * (Ring::rows * 128);
#pragma unroll
  for (unsigned row = 0; row < Ring::rows; row += 16) {
    multiply_group<kHalf>(sums, descriptor<Ring>(own_block + row * 128), descriptor<Ring>(right + row * 128), add);
    add = 1;
  }
}

STREAMCCA_DEVICE void hold_all(float (&sums)[kSums]) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) hold(sums[i]);
}

STREAMCCA_DEVICE void promote(float (&total)[kSums], float (&sums)[kSums]) {
  group_wait<0>();
  hold_all(sums);
#pragma unroll
  for (int i = 0; i < kSums; ++i) total[i] += sums[i];
}

template <unsigned kLeft, unsigned kRight, bool kHalf>
STREAMCCA_DEVICE void multiply_rows(const Product& job, Task task, std::size_t begin, std::size_t end, unsigned char* memory,
                                    float (&total)[kSums]) {
  using R = Ring<kLeft, kRight>;
  constexpr std::size_t first_plane = kHalf ? kHalfPlane : 0;
  const auto load = [&](std::size_t slot) {
    unsigned char* to = memory + slot % R::slots * R::slot_bytes;
    const std::size_t row = begin + slot * R::rows;
#pragma unroll
    for (unsigned plane = 0; plane < kLeft; ++plane)
      load_plane<R>(job, task.row_group, first_plane + plane, row, to + plane * R::plane_bytes);
#pragma unroll
    for (unsigned plane = 0; plane < kRight; ++plane)
      load_plane<R>(job, task.col_group, first_plane + plane, row, to + (kLeft + plane) * R::plane_bytes);
  };

  const std::size_t count = (end - begin + R::rows - 1) / R::rows;
  for (std::size_t slot = 0; slot < R::slots - 2; ++slot) {
    if (slot < count) load(slot);
    commit_copies();
  }
  float sums[kSums] = {};
  int add = 0;
  for (std::size_t slot = 0; slot < count; ++slot) {
    wait_copies<static_cast<int>(R::slots) - 3>();
    fence_shared_writes();
    group_wait<1>();  // this group is done with the slot before the last one
    sync_block();     // so are all, whose copies of this slot have come as well
    if (slot + R::slots - 2 < count) load(slot + R::slots - 2);
    commit_copies();
    const unsigned left = shared_address(memory + slot % R::slots * R::slot_bytes), right = left + kLeft * R::plane_bytes;
    hold_all(sums);
    group_arrive();
#pragma unroll
    for (unsigned order = kLeft + kRight - 1 < kPlanes ? kLeft + kRight - 1 : kPlanes; order-- > 0;) {  // the smallest products first
#pragma unroll
      for (unsigned plane = 0; plane < kLeft; ++plane) {
        if (plane <= order && order - plane < kRight)
          multiply_slot<R, kHalf>(left + plane * R::plane_bytes, right + (order - plane) * R::plane_bytes, sums, add);
      }
    }
    group_commit();
    if ((slot + 1) % R::promote_after == 0 || slot + 1 == count) {
      promote(total, sums);
      add = 0;
    }
  }
  wait_copies<0>();
}

template <unsigned kLeft>
STREAMCCA_DEVICE void multiply_wide(const Product& job, Task task, std::size_t begin, std::size_t end, unsigned char* memory,
                                    float (&total)[kSums]) {
  switch (job.planes[task.col_group]) {
    case 1:
      if constexpr (kLeft > 1) multiply_rows<kLeft, 1, false>(job, task, begin, end, memory, total);
      return;
    case 2: return multiply_rows<kLeft, 2, false>(job, task, begin, end, memory, total);
    default: return multiply_rows<kLeft, 3, false>(job, task, begin, end, memory, total);
  }
}

// PTX ISA, "Register Fragments and Shared Memory Matrix Layouts" of wgmma.m64nNk16: element i of a thread of warp w of its group is in row
// 16 w + lane / 4, and 8 more from i % 4 = 2 on, and in column 8 (i / 4) + 2 (lane % 4) + i % 2.
STREAMCCA_KERNEL void groups_kernel(Product job) {
  if (is_void(job.ticket.status, job.ticket.batch)) return;
  const Task task = job.tasks[block_index() / job.splits];
  const std::size_t part = job.depth / job.splits, begin = block_index() % job.splits * part;
  if (begin >= job.rows) return;
  const std::size_t end = begin + part < job.rows ? begin + part : job.rows;
  unsigned char* memory = shared_memory();
  memory += (kAtom - shared_address(memory) % kAtom) % kAtom;
  float total[kSums] = {};
  const std::uint32_t left = job.planes[task.row_group];
  if (left == 1 && job.planes[task.col_group] == 1) {
    multiply_rows<1, 1, false>(job, task, begin, end, memory, total);
  } else if (job.halves[task.row_group] && job.halves[task.col_group]) {
    multiply_rows<1, 1, true>(job, task, begin, end, memory, total);
  } else if (left == 1) {
    multiply_wide<1>(job, task, begin, end, memory, total);
  } else if (left == 2) {
    multiply_wide<2>(job, task, begin, end, memory, total);
  } else {
    multiply_wide<3>(job, task, begin, end, memory, total);
  }

  const bool partial = job.splits > 1;
  double* out = partial ? job.parts + block_index() * kTileSize : job.target + block_index() * kTileSize;
  const unsigned first_row = thread_index() / 32 * 16, lane = thread_index() % 32;
#pragma unroll
  for (unsigned i = 0; i < kSums; ++i) {
    const unsigned row = first_row + lane / 4 + (i % 4 >= 2 ? 8 : 0), column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    double& entry = out[row * kTile + column];
    entry = (partial ? 0 : entry) + static_cast<double>(total[i]);
  }
}

}  // namespace

void multiply_planes_by_groups(const Product& job, Stream stream) {
  launch(&groups_kernel, job.count * job.splits, kThreads, kSharedBytes + kAtom, stream, job);
}

}  // namespace streamcca::cuda
