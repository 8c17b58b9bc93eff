// What host and kernels agree on: how packed rows, column sums and the state lie in device memory. Plain types and constexpr
// arithmetic, compiled by nvcc, by the host compiler and by the emulator alike.
//
// Packed rows of float32 products are three planes of bfloat16 numbers whose sum is the value, to 24 bits: the tensor cores multiply
// the planes. A value that is a bfloat16 number needs the first plane alone. A fourth plane holds values that are float16 numbers once
// more, as such, where all of a block are. Rows of float64 products are kept as they are.
//
//   planes:  packed[((group * kSlabs + plane) * depth + row) * kTile + column]       (std::uint16_t)
//   float64: packed[(group * depth + row) * kTile + column]                          (double)
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
constexpr std::size_t kSlabs = 4;
constexpr std::size_t kStage = 32;              // rows of planes that are copied into shared memory at once; 16 of float64
constexpr std::size_t kBlankRows = 2 * kStage;  // rows of a block that is not full are zero up to the next multiple of so many
constexpr std::size_t kStrip = 16;              // rows whose column sums one thread forms, always in the same order
constexpr std::size_t kHead = 256;              // rows that the shift is chosen from, as on the CPU
constexpr unsigned kThreads = 256;              // of every block of threads but the counting one

// Rows of a block: the float64 state is read and written once in so many rows. 16 bytes of traffic for 2 * 4096 operations leave a card
// with 3 TB/s time for 1600 TFLOP/s, more than its tensor cores have; float64 products are an order slower, and rows four times as wide.
constexpr std::size_t kBlockRows32 = 4096;
constexpr std::size_t kBlockRows64 = 2048;
// Rows after which the sums of the tensor cores, which truncate, are added to sums that round (numerics: docs/cuda.md).
constexpr std::size_t kPromoteNarrow = 128;
constexpr std::size_t kPromoteWide = kStage;

constexpr Geometry kGeometry{kTile, kTile, kTile, kTile, 8, 1};

constexpr std::size_t plane_index(std::size_t group, std::size_t plane, std::size_t depth, std::size_t row) {
  return ((group * kSlabs + plane) * depth + row) * kTile;
}
constexpr std::size_t double_index(std::size_t group, std::size_t depth, std::size_t row) { return (group * depth + row) * kTile; }

// Where 16-byte chunk `chunk` of row `row` of a stage lies in shared memory, in chunks. Rows are 256 bytes (bfloat16) or 1024 (float64)
// long, so unmoved the same chunk of every row would fall into the same banks.
constexpr unsigned narrow_chunk(unsigned row, unsigned chunk) { return row * 16 + (chunk ^ (row & 7)); }
constexpr unsigned double_chunk(unsigned row, unsigned chunk) { return row * 64 + (chunk ^ ((row & 3) << 1)); }

// The same for warp groups, which read 64 columns of a stage of `rows` rows behind one another, swizzled as their descriptors say.
constexpr unsigned group_chunk(unsigned rows, unsigned row, unsigned chunk) { return (chunk / 8 * rows + row) * 8 + ((chunk ^ row) & 7); }

// One tile of the state: which groups it multiplies.
struct Task {
  std::uint32_t row_group = 0;
  std::uint32_t col_group = 0;
};

// Into how many parts the rows of a block are cut where there are fewer tiles than a large card has processors (twice: 264 on an H100). A
// function of the number of tiles alone, since bits must not depend on the card.
constexpr std::size_t splits_for(std::size_t tiles, std::size_t depth) {
  std::size_t splits = 1;
  while (splits < 16 && splits * tiles < 264 && depth % (512 * splits) == 0) splits *= 2;  // parts are multiples of 256 rows
  return splits;
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
