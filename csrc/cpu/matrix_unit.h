// Products of float32 rows on a unit that multiplies small matrices of narrow numbers (Intel AMX): the contract.
//
// A block of rows takes one of two forms.
//   narrow: every value is a bfloat16 number. One product of bfloat16 numbers, exact in float32, for each product of values; float32 sums.
//   digits: every value is an integer of 24 bits times a power of two of its column: value = (65536 d0 + 256 d1 + d2) * unit, the
//           digits from -128 to 127. Of the nine products of digits the six of the highest three orders are formed, or the eight
//           of the highest four, and summed exactly, in integers.
// What digits lose (docs/numerics.md): a value is rounded to its column's unit, at most 2^-22 of the largest magnitude there; and the
// products of the lowest orders are left out. Digits scatter evenly around zero, so the fourth order is 2^21 units in root mean square,
// times the root of the number of rows. It is formed where that counts beside the sum of squares: in short blocks, and for columns that
// consist of a few peaks.
//
// Rows of one group (16 columns, kernels.h) come in chunks of 64 bytes a column: 32 narrow rows, or 64 rows of one digit; the last chunk is
// filled up with zero rows. A chunk is 1 KB, in one of two layouts; with `together` = 2 or 4 rows:
//   split:  16 lines, line k holds rows `together` * k and the following ones of all columns, column by column
//   turned: 16 lines, line c holds all rows of column c
// Chunk follows chunk; digits follow each other at kDigitBytes.
//
// This header includes no C++ standard header, for the reason given in kernels.h.
#pragma once
#include <stddef.h>

namespace streamcca {

constexpr size_t kDigits = 3;
constexpr size_t kChunkBytes = 1024;
constexpr size_t kNarrowChunk = 32, kDigitChunk = 64;  // rows
// Rows of a block. Twice those of the vector kernels, since additions to the float64 state weigh more here, and chains are shorter.
constexpr size_t kUnitDepth = 512;
// Some bytes behind each digit stay unused, so that the same chunk of all digits and groups does not fall into the same sets of
// the caches.
constexpr size_t kDigitBytes = kUnitDepth / kDigitChunk * kChunkBytes + 320;
constexpr size_t kFormBytes = kDigits * kDigitBytes;
static_assert(kFormBytes >= kUnitDepth / kNarrowChunk * kChunkBytes, "a form holds a narrow block, too");
constexpr size_t kSide = 32;  // rows and columns of a tile
// Below this sum of squares, in units, the fourth order counts: it is half of what a chain of float32 additions loses there.
constexpr float kFourthOrderCounts = 281474976710656.0f;  // 2^48

// What a group of packed rows is fit for. Unfit: not finite, or so small or large that scaling would lose it.
enum class Fit { unfit, digits, narrow };

// Two groups next to each other, in either layout; of the last columns of a view the second may be the first again.
struct Operand {
  const unsigned char* form[2];
  const double* units[2];  // 16 each; of digits only
  bool fourth_order;       // counts for one of them; of digits only
};

// The sums of the part of a tile that was multiplied last, on their way into the state: they are added while the unit works on
// the next one.
struct Waiting {
  alignas(64) unsigned char sums[kSide * kSide * 8];
  alignas(64) double row_units[kSide], column_units[16];
  double* out;
  size_t stride;    // values from one row of `out` to the next
  size_t rows;      // that still wait, the last ones of kSide
  unsigned orders;  // of digits; 0: narrow
};

struct MatrixUnit {
  // What `rows` packed rows of one group are fit for, and the units of its 16 columns.
  Fit (*look)(const float* group, size_t rows, double* units);
  // Writes one form, split and turned. Digits: whether the fourth order counts for one of the columns.
  void (*split_narrow)(const float* group, size_t rows, unsigned char* split, unsigned char* turned);
  bool (*split_digits)(const float* group, size_t rows, const double* units, unsigned char* split, unsigned char* turned);

  // out[r * vectors * 16 + c] += sum over `depth` rows of rows_r * columns_c, r < 32, c < 16 * vectors, some of it later: what is left
  // waits in `waiting`, where the remains of the tile before were. `rows` are turned, `columns` split, all aligned to a line.
  // narrow: each sum is 16 pairs of rows by pairs of rows, then chunk after chunk, in float32: at most 17 + depth / 32 roundings.
  // digits: exact sums; one rounding each where they meet the state.
  // `ahead`: depth / 4 lines from here on are called into the second-level cache.
  void (*multiply_narrow)(size_t depth, const Operand* rows, const Operand* columns, size_t vectors, double* out, Waiting* waiting,
                          const void* ahead);
  void (*multiply_digits)(size_t depth, const Operand* rows, const Operand* columns, size_t vectors, double* out, Waiting* waiting,
                          const void* ahead);
  void (*finish)(Waiting* waiting);

  // `iterations` rounds of independent products on registers: the unit's own peak, in operations on bfloat16 numbers (digits: twice
  // as many). Returns their number.
  double (*multiply_add)(size_t iterations);

  // Around calls of the products, on each thread.
  void (*enter)();
  void (*leave)();
};

}  // namespace streamcca
