// What host and kernels agree on: how packed rows, column sums and the state lie in device memory. Plain types and constexpr
// arithmetic, compiled by nvcc, by the host compiler and by the emulator alike.
//
// Packed rows of float32 products are three planes of bfloat16 numbers whose sum is the value, to 24 bits: the tensor cores multiply
// the planes. A value that is a bfloat16 number needs the first plane alone. A fourth plane holds values that are float16 numbers once
// more, as such, where all of a block are; where all of all views are it is the only one. Rows of float64 products are kept as they are.
//
//   planes:  packed.plane[p][plane_place(group, packed.rows, row, column)]     (std::uint16_t)
//   float64: packed.plane[0][double_place(group, packed.rows, row, column)]    (double)
//
// Each plane has memory of its own, which it only has where some group needs it (block.h).
//
// Planes lie in slabs of kSlabRows rows, one behind the other, and within a slab as Hopper's tensor cores want them in shared memory, so
// that a slab is one copy of 16 KiB that no thread has to touch.
//
// A group is kTile columns of one view, as in core/schedule.h. One tile of the state is the product of two groups, row-major, one after the
// other in the order of the schedule: half a square for a view with itself, and of several views only the wanted pairs.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/rows.h"
#include "core/schedule.h"

namespace streamcca::cuda {

constexpr std::size_t kTile = 128;  // columns of a group; rows and columns of a tile
constexpr std::size_t kTileSize = kTile * kTile;
constexpr std::size_t kPlanes = 3;
constexpr std::size_t kHalfPlane = 3;  // of float16 numbers
constexpr std::size_t kPlaneSets = 4;  // three planes and that of float16 numbers
// Sets of planes, a bit for each.
constexpr unsigned kOnePlane = 1, kSplitPlanes = (1u << kPlanes) - 1, kHalvesAlone = 1u << kHalfPlane;
constexpr std::size_t kSlabRows = 64;          // of planes
constexpr std::size_t kStage = 32;             // rows of planes that are multiplied at once; 16 of float64
constexpr std::size_t kBlankRows = kSlabRows;  // rows of a block that is not full are zero up to the next multiple of so many
constexpr std::size_t kStrip = 32;             // rows whose column sums one thread forms, always in the same order
constexpr std::size_t kHead = 256;             // rows that the shift is chosen from, as on the CPU
constexpr unsigned kThreads = 256;             // of most blocks of threads

// Rows of a block: the float64 state is read and written once in so many rows, while the tensor cores wait, since the blocks of threads
// that work at once end at once. In a prototype on an H200, bfloat16 rows x 4096, 22, 13 and 6 % of the time with 4096, 8192 and 16384
// rows. Many columns take fewer: a gigabyte or less, to 32,768 columns.
constexpr std::size_t block_rows(std::size_t columns) { return columns <= 8192 ? 16384 : columns <= 16384 ? 8192 : 4096; }
constexpr std::size_t kMostBlockRows = 16384;
// Rows after which the sums of the tensor cores, which truncate, are added to sums that round (numerics: docs/cuda.md).
constexpr std::size_t kPromoteNarrow = 128;
constexpr std::size_t kPromoteWide = kStage;
// Rows after which these sums, of which there are more with several planes, are added to the float64 state before the end of the block.
constexpr std::size_t kSettleWide = 4096;

constexpr Geometry kGeometry{kTile, kTile, kTile, kTile, 8, 1};

// Where 16-byte chunk `chunk` (8 columns) of row `row` of a slab lies within it, in chunks: 64 columns of all its rows behind one another,
// a row of them 128 bytes, whose chunks change places from row to row (PTX ISA, "Canonical Layouts", swizzle of 128 bytes).
constexpr unsigned slab_chunk(unsigned row, unsigned chunk) {
  return (chunk / 8 * static_cast<unsigned>(kSlabRows) + row) * 8 + ((chunk ^ row) & 7);
}
// Where a slab begins whose first row is `row`, or a row of float64; a group has room for `rows`.
constexpr std::size_t row_index(std::size_t group, std::size_t rows, std::size_t row) { return (group * rows + row) * kTile; }
constexpr std::size_t plane_place(std::size_t group, std::size_t rows, std::size_t row, std::size_t column) {
  const std::size_t within = row % kSlabRows;
  return row_index(group, rows, row - within) +
         8 * std::size_t{slab_chunk(static_cast<unsigned>(within), static_cast<unsigned>(column / 8))} + column % 8;
}
// Float64 rows lie as threads load fragments of them from shared memory: rows of 1024 bytes would have the same chunk in the same banks.
constexpr unsigned double_chunk(unsigned row, unsigned chunk) { return row * 64 + (chunk ^ ((row & 3) << 1)); }
constexpr std::size_t double_place(std::size_t group, std::size_t rows, std::size_t row, std::size_t column) {
  return row_index(group, rows, 0) + 2 * std::size_t{double_chunk(static_cast<unsigned>(row), static_cast<unsigned>(column / 2))} +
         column % 2;
}

// Where chunk `chunk` of row `row` of a stage of planes lies in shared memory, for threads that load fragments from there, in chunks. Rows
// are 256 bytes long, so unmoved the same chunk of every row would fall into the same banks.
constexpr unsigned narrow_chunk(unsigned row, unsigned chunk) { return row * 16 + (chunk ^ (row & 7)); }

// The memory of the rows that wait: by plane (of float64 rows there is one) all groups, with room for `rows` each.
struct Packed {
  void* plane[kPlaneSets] = {};
  std::size_t rows = 0;
};

// One tile of the state: which groups it multiplies.
struct Task {
  std::uint32_t row_group = 0;
  std::uint32_t col_group = 0;
};

// Tiles that one block of threads multiplies together on Hopper: of at most three groups, so that rows are read 1.5 times a tile instead of
// twice. Their numbers, the second of which may be none.
constexpr std::uint32_t kNoTile = ~std::uint32_t{0};
constexpr std::size_t kMostPanels = 3;
struct Unit {
  std::uint32_t tile[2] = {kNoTile, kNoTile};
};

// Into how many parts the rows of a block are cut where its units (on other rungs, and of float64 products, tiles) would not fill the 132
// processors of an H100 evenly; a function of shapes alone, since bits must not depend on the card. In units of the time of one unit: the
// rounds that the processors take, and what writing and adding the parts costs.
constexpr std::size_t splits_for(std::size_t units, std::size_t depth) {
  constexpr std::size_t processors = 132;
  std::size_t best = 1;
  double least = 0;
  for (std::size_t splits = 1; splits <= 16 && depth % (256 * splits) == 0; splits *= 2) {  // parts are multiples of 256 rows
    const std::size_t rounds = (units * splits + processors - 1) / processors;
    const double parts = splits > 1 ? 0.05 * static_cast<double>(units * splits) / static_cast<double>(processors) : 0;
    const double time = static_cast<double>(rounds) / static_cast<double>(splits) + parts;
    if (splits == 1 || time < least) best = splits, least = time;
  }
  return best;
}

// Written by kernels, read by the host when it waits for them anyway. Kernels of the batch that was refused, and of all later ones, do
// nothing.
struct Status {
  unsigned long long refused_batch = ~0ull;  // number of the first batch with a value that is refused
  unsigned long long where = ~0ull;          // row of that batch * 2^20 + view, the first one
  unsigned long long too_large = 0;          // whether a finite value was refused
  unsigned long long skipped = 0;            // rows left out
  double skipped_weight = 0;
};
constexpr unsigned kViewBits = 20;

// The part of a launch that says whether it still counts.
struct Ticket {
  const Status* status = nullptr;
  unsigned long long batch = 0;
};

}  // namespace streamcca::cuda
