// The products of multiply_planes.cu on Hopper's tensor cores, which take both operands from shared memory and work while the warps that
// asked go on (wgmma): two groups of four warps multiply, each 64 x 128 entries of a tile at a time, and one thread of a third group has
// slabs of rows copied to a ring of slots. The same planes, the same short chains, whose sums go into float32 sums that round.
//
// Rows of one plane are shared by the two tiles of a unit: with a tile a block, copies would be what costs (prototypes
// on an H200, bfloat16 rows x 4096: 631 TFLOP/s instead of 681). While one group adds the sums of its chain, the other one's products
// run.
#include "cuda/batch_rows.h"
#include "cuda/device.h"
#include "cuda/kernels.h"
#include "cuda/ring.h"

namespace streamcca::cuda {
namespace {

constexpr unsigned kSlots = 4;
constexpr unsigned kPanelBytes = kSlabRows * kTile * sizeof(std::uint16_t);  // a slab
constexpr unsigned kSlotBytes = kMostPanels * kPanelBytes;
constexpr unsigned kSharedBytes = SlotRing<kSlots, kSlotBytes>::kBytes + 2 * 8;
constexpr int kSums = 64;       // of a thread and a tile
constexpr unsigned kAhead = 8;  // pairs of entries of the state that a thread reads before it writes them
static_assert(2 * kPlanes * kStage * kTile * sizeof(std::uint16_t) <= kSlotBytes, "a stage of all planes of both operands");
static_assert(kPromoteNarrow == 2 * kSlabRows && kPromoteWide == kStage && kSlabRows == 2 * kStage, "chains of two slots, or of one");

struct Ring : SlotRing<kSlots, kSlotBytes> {
  unsigned half_done = 0;  // barriers, one of each group
  unsigned chain = 0;      // number of the next one
  // Chains of the two groups start in turn, each when the other one's is half done. Else both start at once, share the tensor cores, end at
  // once and leave them idle while both add their sums.
  STREAMCCA_DEVICE void wait_turn() const {
    const unsigned group = thread_index() / 128;
    barrier_wait(half_done + (1 - group) * 8, (chain & 1) ^ (1 - group));
  }
  STREAMCCA_DEVICE void pass_turn() {
    if (thread_index() % 32 == 0) barrier_arrive(half_done + thread_index() / 128 * 8);
    ++chain;
  }
};

// Which groups a unit needs, and which of these panels its tiles multiply.
struct Panels {
  std::uint32_t group[kMostPanels] = {};
  unsigned count = 0;
  unsigned left[2] = {}, right[2] = {};
  STREAMCCA_DEVICE unsigned find(std::uint32_t wanted) {
#pragma unroll
    for (unsigned p = 0; p < kMostPanels; ++p) {
      if (p < count && group[p] == wanted) return p;
    }
#pragma unroll
    for (unsigned p = 0; p < kMostPanels; ++p) {
      if (p == count) group[p] = wanted;
    }
    return count++;
  }
};

// The rows of a part of the block.
struct Span {
  std::size_t begin;
  unsigned slabs;
};

// What tells the tensor cores where 16 rows of 64 columns, or two blocks of 64, lie, columns behind one another (PTX ISA, "Matrix
// Descriptor Format" and "Canonical Layouts"): the address, the distance of blocks of columns, that of 8 rows, swizzled by 128 bytes.
template <unsigned kRows>
STREAMCCA_DEVICE std::uint64_t descriptor(unsigned address) {
  constexpr std::uint64_t blocks = kRows * 128 / 16, eight_rows = kSlotAlignment / 16, swizzle_128 = 1;
  return (address & 0x3ffffu) >> 4 | blocks << 16 | eight_rows << 32 | swizzle_128 << 62;
}

// Adds the products of kRows rows of one plane of each operand, or starts from them.
template <unsigned kRows, bool kHalf>
STREAMCCA_DEVICE void multiply_rows(unsigned left, unsigned right, float (&sums)[kSums], int& add) {
  const unsigned own_block = left + thread_index() / 128 * (kRows * 128);
#pragma unroll
  for (unsigned row = 0; row < kRows; row += 16) {
    multiply_group<kHalf>(sums, descriptor<kRows>(own_block + row * 128), descriptor<kRows>(right + row * 128), add);
    add = 1;
  }
}

STREAMCCA_DEVICE void hold_all(float (&sums)[kSums]) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) hold(sums[i]);
}

STREAMCCA_DEVICE void promote(float (&total)[kSums], const float (&sums)[kSums]) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) total[i] += sums[i];
}

STREAMCCA_DEVICE const unsigned char* slab(const Product& job, std::uint32_t group, std::size_t plane, std::size_t row) {
  return reinterpret_cast<const unsigned char*>(static_cast<const std::uint16_t*>(job.packed.plane[plane]) +
                                                row_index(group, job.packed.rows, row));
}

// ---------------------------------------------------------------- one plane of each group

STREAMCCA_DEVICE void copy_slabs(const Product& job, const Panels& panels, std::size_t plane, Span span, Ring& ring) {
  for (unsigned s = 0; s < span.slabs; ++s, ++ring.next) {
    ring.wait_empty(ring.next);
    barrier_announce(ring.full_at(ring.next), panels.count * kPanelBytes);
#pragma unroll
    for (unsigned p = 0; p < kMostPanels; ++p) {
      if (p < panels.count)
        copy_bulk(ring.slot(ring.next) + p * kPanelBytes, slab(job, panels.group[p], plane, span.begin + s * kSlabRows), kPanelBytes,
                  ring.full_at(ring.next));
    }
  }
}

// A chain of kCount slots for each tile; the last of them gives the slots back.
template <unsigned kTiles, unsigned kCount, bool kHalf>
STREAMCCA_DEVICE void multiply_chain(const Panels& panels, Ring& ring, float (&sums)[kSums], float (&total)[2][kSums]) {
#pragma unroll
  for (unsigned t = 0; t < kTiles; ++t) {
    int add = 0;
    ring.wait_turn();
    hold_all(sums);
    group_arrive();
#pragma unroll
    for (unsigned c = 0; c < kCount; ++c) {
      if (t == 0) ring.wait_full(ring.next + c);
      const unsigned slot = ring.slot(ring.next + c);
      multiply_rows<kSlabRows, kHalf>(slot + panels.left[t] * kPanelBytes, slot + panels.right[t] * kPanelBytes, sums, add);
      if (c + 1 < kCount) group_commit();
    }
    group_commit();
    if (kCount > 1) group_wait<1>();
    ring.pass_turn();
    group_wait<0>();
    hold_all(sums);
    if (t + 1 == kTiles && thread_index() % 32 == 0) {
#pragma unroll
      for (unsigned c = 0; c < kCount; ++c) barrier_arrive(ring.empty_at(ring.next + c));
    }
    promote(total[t], sums);
  }
  ring.next += kCount;
}

template <unsigned kTiles, bool kHalf>
STREAMCCA_DEVICE void multiply_slabs(const Panels& panels, Span span, Ring& ring, float (&total)[2][kSums]) {
  float sums[kSums] = {};
  for (unsigned s = 0; s + 2 <= span.slabs; s += 2) multiply_chain<kTiles, 2, kHalf>(panels, ring, sums, total);
  if (span.slabs % 2) multiply_chain<kTiles, 1, kHalf>(panels, ring, sums, total);
}

// ---------------------------------------------------------------- several planes

// kStage rows of all planes of both operands a slot: half a slab of each, in two pieces of 64 columns.
STREAMCCA_DEVICE void copy_stages(const Product& job, Task task, unsigned left_planes, unsigned right_planes, Span span, Ring& ring) {
  constexpr unsigned piece = kStage * 128;
  const auto copy_plane = [&](std::uint32_t group, unsigned plane, std::size_t row, unsigned to) {
    const unsigned char* from = slab(job, group, plane, row / kSlabRows * kSlabRows) + row % kSlabRows * 128;
    copy_bulk(to, from, piece, ring.full_at(ring.next));
    copy_bulk(to + piece, from + kSlabRows * 128, piece, ring.full_at(ring.next));
  };
  for (unsigned s = 0; s < 2 * span.slabs; ++s, ++ring.next) {
    const std::size_t row = span.begin + s * kStage;
    unsigned to = ring.slot(ring.next);
    ring.wait_empty(ring.next);
    barrier_announce(ring.full_at(ring.next), (left_planes + right_planes) * 2 * piece);
    for (unsigned p = 0; p < left_planes; ++p, to += 2 * piece) copy_plane(task.row_group, p, row, to);
    for (unsigned p = 0; p < right_planes; ++p, to += 2 * piece) copy_plane(task.col_group, p, row, to);
  }
}

// The numbers of planes are known to the compiler, so that nothing branches between products, which would make it wait for them.
template <unsigned kLeft, unsigned kRight>
STREAMCCA_DEVICE void multiply_stages(Span span, Ring& ring, float (&total)[kSums]) {
  constexpr unsigned plane_bytes = kStage * kTile * sizeof(std::uint16_t);
  constexpr unsigned orders = kLeft + kRight - 1 < kPlanes ? kLeft + kRight - 1 : kPlanes;
  float sums[kSums] = {};
  for (unsigned s = 0; s < 2 * span.slabs; ++s, ++ring.next) {
    const unsigned left = ring.slot(ring.next), right = left + kLeft * plane_bytes;
    int add = 0;
    ring.wait_full(ring.next);
    ring.wait_turn();
    hold_all(sums);
    group_arrive();
#pragma unroll
    for (unsigned order = orders; order-- > 0;) {  // the smallest products first
#pragma unroll
      for (unsigned plane = 0; plane < kLeft; ++plane) {
        if (plane <= order && order - plane < kRight)
          multiply_rows<kStage, false>(left + plane * plane_bytes, right + (order - plane) * plane_bytes, sums, add);
      }
      if (order > 0 && order + 1 == orders) group_commit();  // half of them, about
    }
    group_commit();
    if (orders > 1) group_wait<1>();
    ring.pass_turn();
    group_wait<0>();
    hold_all(sums);
    if (thread_index() % 32 == 0) barrier_arrive(ring.empty_at(ring.next));
    promote(total, sums);
  }
}

template <unsigned kLeft>
STREAMCCA_DEVICE void multiply_wide(unsigned right_planes, Span span, Ring& ring, float (&total)[kSums]) {
  switch (right_planes) {
    case 1:
      if constexpr (kLeft > 1) multiply_stages<kLeft, 1>(span, ring, total);
      return;
    case 2: return multiply_stages<kLeft, 2>(span, ring, total);
    default: return multiply_stages<kLeft, 3>(span, ring, total);
  }
}

// ---------------------------------------------------------------- units

enum class Kind { narrow, half, wide };

// What multiplies all groups of some panels.
STREAMCCA_DEVICE Kind kind_of(const Product& job, const Panels& panels) {
  bool narrow = true, half = true;
#pragma unroll
  for (unsigned p = 0; p < kMostPanels; ++p) {
    if (p >= panels.count) continue;
    narrow = narrow && job.planes[panels.group[p]] == 1;
    half = half && job.halves[panels.group[p]];
  }
  return half ? Kind::half : narrow ? Kind::narrow : Kind::wide;  // halves may be alone
}

STREAMCCA_DEVICE void add_tile(Panels& panels, unsigned t, Task task) {
  panels.left[t] = panels.find(task.row_group);
  panels.right[t] = panels.find(task.col_group);
}

template <unsigned kTiles>
STREAMCCA_DEVICE void multiply_together(const Panels& panels, Kind kind, Span span, Ring& ring, float (&total)[2][kSums]) {
  if (kind == Kind::narrow) {
    multiply_slabs<kTiles, false>(panels, span, ring, total);
  } else {
    multiply_slabs<kTiles, true>(panels, span, ring, total);
  }
}

// One tile for itself, where another one of its unit needs more planes.
STREAMCCA_DEVICE void copy_alone(const Product& job, Task task, Span span, Ring& ring) {
  Panels panels;
  add_tile(panels, 0, task);
  const Kind kind = kind_of(job, panels);
  if (kind == Kind::wide) {
    copy_stages(job, task, job.planes[task.row_group], job.planes[task.col_group], span, ring);
  } else {
    copy_slabs(job, panels, kind == Kind::half ? kHalfPlane : 0, span, ring);
  }
}

// PTX ISA, "Register Fragments and Shared Memory Matrix Layouts" of wgmma.m64nNk16: element i of a thread of warp w of its group is in row
// 16 w + lane / 4, and 8 more from i % 4 = 2 on, and in column 8 (i / 4) + 2 (lane % 4) + i % 2.
// A part of a block has memory of its own, which `fresh` sums start.
STREAMCCA_DEVICE void add_to_state(const Product& job, std::size_t number, const float (&total)[kSums], bool fresh) {
  const std::size_t tile = number - job.first_tile;
  double* out = job.splits > 1 ? job.parts + (tile * job.splits + block_index() % job.splits) * kTileSize : job.target + tile * kTileSize;
  const unsigned lane = thread_index() % 32;
  out += (thread_index() / 32 * 16 + lane / 4) * kTile + lane % 4 * 2;
#pragma unroll
  for (unsigned first = 0; first < kSums / 2; first += kAhead) {
    TwoDoubles entries[kAhead];
#pragma unroll
    for (unsigned i = 0; i < kAhead; ++i) {
      const unsigned pair = first + i;
      entries[i] = fresh ? TwoDoubles{0, 0} : *reinterpret_cast<const TwoDoubles*>(out + pair % 2 * 8 * kTile + pair / 2 * 8);
    }
#pragma unroll
    for (unsigned i = 0; i < kAhead; ++i) {
      const unsigned pair = first + i;
      entries[i].x += static_cast<double>(total[2 * pair]);
      entries[i].y += static_cast<double>(total[2 * pair + 1]);
      *reinterpret_cast<TwoDoubles*>(out + pair % 2 * 8 * kTile + pair / 2 * 8) = entries[i];
    }
  }
}

STREAMCCA_DEVICE void clear(float (&total)[kSums]) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) total[i] = 0;
}

STREAMCCA_DEVICE void multiply_alone(const Product& job, std::size_t number, Span span, Ring& ring, float (&total)[2][kSums]) {
  const Task task = job.tasks[number - job.first_tile];
  Panels panels;
  add_tile(panels, 0, task);
  const Kind kind = kind_of(job, panels);
  if (kind != Kind::wide) {
    clear(total[0]);
    multiply_together<1>(panels, kind, span, ring, total);
    return add_to_state(job, number, total[0], job.splits > 1);
  }
  const unsigned left = job.planes[task.row_group], right = job.planes[task.col_group];
  for (unsigned done = 0; done < span.slabs; done += kSettleWide / kSlabRows) {
    const unsigned rest = span.slabs - done;
    const Span now{span.begin, rest < kSettleWide / kSlabRows ? rest : static_cast<unsigned>(kSettleWide / kSlabRows)};
    clear(total[0]);
    if (left == 1) {
      multiply_wide<1>(right, now, ring, total[0]);
    } else if (left == 2) {
      multiply_wide<2>(right, now, ring, total[0]);
    } else {
      multiply_wide<3>(right, now, ring, total[0]);
    }
    add_to_state(job, number, total[0], done == 0 && job.splits > 1);
  }
}

STREAMCCA_DEVICE Ring start_ring() {
  Ring ring;
  ring.half_done = ring.place(shared_address(shared_memory()));
  if (thread_index() == 0) {
    ring.start(kMultiplying / 32);
    for (unsigned group = 0; group < 2; ++group) barrier_start(ring.half_done + group * 8, 4);
    barriers_started();
  }
  sync_block();
  return ring;
}

// A block of threads takes one part of the rows of one unit.
STREAMCCA_GROUPS_KERNEL void groups_kernel(Product job) {
  if (is_void(job.ticket.status, job.ticket.batch)) return;
  const Unit unit = job.units[block_index() / job.splits];
  const std::size_t begin = block_index() % job.splits * job.part;
  if (begin >= job.rows) return;
  const std::size_t end = begin + job.part < job.rows ? begin + job.part : job.rows;
  const Span span{begin, static_cast<unsigned>((end - begin + kSlabRows - 1) / kSlabRows)};
  const unsigned tiles = unit.tile[1] == kNoTile ? 1 : 2;
  const auto task_of = [&](unsigned t) { return job.tasks[(t == 0 ? unit.tile[0] : unit.tile[1]) - job.first_tile]; };
  Panels panels;
  add_tile(panels, 0, task_of(0));
  if (tiles == 2) add_tile(panels, 1, task_of(1));
  const Kind kind = kind_of(job, panels);
  Ring ring = start_ring();

  if (thread_index() >= kMultiplying) {
    give_registers();
    if (thread_index() != kMultiplying) return;
    if (kind != Kind::wide) return copy_slabs(job, panels, kind == Kind::half ? kHalfPlane : 0, span, ring);
    for (unsigned t = 0; t < tiles; ++t) copy_alone(job, task_of(t), span, ring);
    return;
  }
  take_registers();
  float total[2][kSums] = {};
  if (kind != Kind::wide && tiles == 2) {
    multiply_together<2>(panels, kind, span, ring, total);
    add_to_state(job, unit.tile[0], total[0], job.splits > 1);
    add_to_state(job, unit.tile[1], total[1], job.splits > 1);
    return;
  }
  for (unsigned t = 0; t < tiles; ++t) multiply_alone(job, t == 0 ? unit.tile[0] : unit.tile[1], span, ring, total);
}

}  // namespace

void multiply_planes_by_groups(const Product& job, Stream stream) {
  launch(&groups_kernel, job.unit_count * job.splits, kGroupThreads, kSharedBytes, stream, job);
}

}  // namespace streamcca::cuda
