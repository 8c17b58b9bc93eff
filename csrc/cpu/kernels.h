// The contract of the CPU kernels. One source (kernels.inc) is compiled once per instruction-set level;
// each level exports one table, and the level is chosen once, outside every loop (dispatch.h).
//
// This header and kernels.inc include no C++ standard header: an inline function of `std` compiled for
// AVX-512 could be the copy that the linker keeps for everybody (one-definition rule), and then an older
// CPU dies of an illegal instruction in code that has nothing to do with the kernels.
//
// Packed panel: rows of `panel` values, row after row, aligned to a vector of the level; panels follow each
// other at a constant stride. Columns past the width of a view are zero. T is the type in which products are formed.
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

template <class T>
struct ProductKernels {
  size_t lanes;  // values in one vector
  size_t panel;  // columns in a packed panel
  size_t slice;  // rows of a tile

  // out[r * vectors * lanes + c] += sum over k < depth of rows[k * panel + r] * columns[k * panel + c],
  // r < slice, c < vectors * lanes, vectors * lanes <= panel.
  // The sum over k is one chain of multiply-adds in T (fused from the avx2 level on), k ascending, then
  // one addition in float64: error <= depth * u_T * sum |rows * columns| + u_64 * |out|.
  // `columns` and `out` are aligned to a vector; `rows` may point into the same panel; `out` aliases neither.
  void (*tile)(size_t depth, const T* columns, size_t vectors, const T* rows, double* out);

  // Rows into panels: out[p * panel_stride + k * panel + c] = T(x[k][p * panel + c] - shift[p * panel + c])
  // * roots[k], for k < rows. One rounding for the difference (float64 rows: in float64, then to T), one for
  // the product with `roots`, which may be null (all ones). Source type is the index (DType order); any strides, also misaligned.
  // Padding columns are left as they are. `shift` has `cols` entries, each exactly representable in T.
  void (*pack[4])(const PackSource* source, const T* shift, const double* roots, T* out, size_t panel_stride);

  // Over k < depth, ascending, in float64, for c < panel:
  //   sums[c]    += sum of roots[k] * columns[k * panel + c]   (`roots` may be null: all ones)
  //   squares[c] += sum of columns[k * panel + c]^2
  // The squares are the diagonal of the product once more, without rounding in T: the difference to the
  // tiles' diagonal is the rounding that really happened.
  void (*column_moments)(size_t depth, const T* columns, const double* roots, double* sums, double* squares);
};

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
};

}  // namespace streamcca
