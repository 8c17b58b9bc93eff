// The contract of the CPU kernels. One source (kernels.inc) is compiled once per instruction-set level;
// each level exports one table, and the level is chosen once, outside every loop (dispatch.h).
//
// This header and kernels.inc include no C++ standard header: an inline function of `std` compiled for
// AVX-512 could be the copy that the linker keeps for everybody (one-definition rule), and then an older
// CPU dies of an illegal instruction in code that has nothing to do with the kernels.
//
// Packed rows: the columns of a view form groups that fill a cache line each (16 of float32, 8 of float64). The rows
// of one group follow each other line after line; groups follow at a constant stride, aligned to a line. Both
// operands of a product are read from this one copy. Columns past the width of a view are zero. T is the type in
// which products are formed.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace streamcca {

struct PackSource {
  const unsigned char* data;
  ptrdiff_t row_stride;  // bytes
  ptrdiff_t col_stride;  // bytes
  size_t rows;
  size_t cols;
};

constexpr size_t kLineBytes = 64;
constexpr size_t kLargestVectors = 3;

template <class T>
constexpr size_t kGroup = kLineBytes / sizeof(T);  // columns in one line

template <class T>
struct ProductKernels {
  size_t lanes;    // values in one vector
  size_t vectors;  // vectors across a tile, at most
  size_t slice;    // rows of a tile
  size_t depth;    // rows of a block

  // out[r * vectors * lanes + c * lanes + l] += sum over k < depth of rows[k * kGroup + r] * columns[c][k * kGroup + l],
  // r < slice, c < vectors, l < lanes.
  // The sum over k is one chain of multiply-adds in T (fused from the avx2 level on), k ascending, then
  // one addition in float64: error <= depth * u_T * sum |rows * columns| + u_64 * |out|.
  // columns[c] and `out` are aligned to a vector, `rows` to an element; the operands may overlap; `out` aliases neither.
  // `ahead`: depth / 4 lines from here on will be wanted soon; they are called into the second-level cache, which never
  // faults, wherever it points.
  void (*tile)(size_t depth, const T* const* columns, size_t vectors, const T* rows, double* out, const void* ahead);

  // Rows into groups: out[g * group_stride + k * kGroup + c] = T(x[k][g * kGroup + c] - shift[g * kGroup + c])
  // * roots[k], for k < rows, and zero past the last column. One rounding for the difference (float64 rows: in
  // float64, then to T), one for the product with `roots`, which may be null (all ones). Source type is the index (DType
  // order); any strides, also misaligned. `shift` has an entry for every column of the groups, each exactly
  // representable in T; zero past the last column.
  // What was written, p, is also summed, in float64, k ascending, into `sums` and `squares` (an entry for every column of
  // the groups): sums += roots * p, squares += p^2. The squares are the diagonal of the product once more, without
  // rounding in T: the difference to the tiles' diagonal is the rounding that really happened.
  void (*pack[4])(const PackSource* source, const T* shift, const double* roots, T* out, size_t group_stride, double* sums,
                  double* squares);

  // The sums of one group of packed rows alone, the same bits as from `pack`.
  void (*sum_columns)(const T* group, size_t rows, const double* roots, double* sums, double* squares);
};

// Products of bfloat16 numbers, two rows an instruction, for float32 rows all of whose values are such numbers.
// Narrow rows: line k of a group holds rows 2 k and 2 k + 1 of its 16 columns, column by column, as two halves of 32 bits each.
struct NarrowKernels {
  // Brings packed rows of one group into this form; an odd last one is paired with zeros. Returns false, with `out` in any state, if a
  // value is no bfloat16 number or a column's largest magnitude lies outside [2^-40, 2^62], where products are lost (the
  // instruction takes numbers below 2^-126 for zero).
  bool (*narrow)(const float* group, size_t rows, float* out);
  // As ProductKernels<float>::tile, on narrow rows: `depth` lines. Products are exact; each line adds two of them to a sum,
  // with one or two roundings: error <= 2 * depth * u_32 * sum |rows * columns| + u_64 * |out|. `ahead`: depth / 2 lines.
  void (*tile)(size_t depth, const float* const* columns, size_t vectors, const float* rows, double* out, const void* ahead);
};

struct MatrixUnit;  // matrix_unit.h

struct KernelTable {
  const char* name;
  ProductKernels<float> f32;
  ProductKernels<double> f64;

  // Largest bit pattern without the sign, over all values of the batch: one pass finds NaN, infinity and
  // values too large to be squared, since IEEE magnitudes order like integers. 0 for an empty batch.
  uint64_t (*largest_magnitude[4])(const PackSource* source);

  // `iterations` rounds of 24 independent vector multiply-adds on registers: the peak that benchmarks
  // quote. Returns the number of floating-point operations done; *sink keeps the result alive.
  double (*multiply_add_f32)(size_t iterations, double* sink);
  double (*multiply_add_f64)(size_t iterations, double* sink);

  // For bfloat16 numbers, if not null.
  const NarrowKernels* narrow;

  // Forms the float32 products of this level, if not null, where a value takes part in so many products at least: splitting
  // values costs time that products must win back.
  const MatrixUnit* matrix;
  size_t matrix_pays_from;
};

}  // namespace streamcca
