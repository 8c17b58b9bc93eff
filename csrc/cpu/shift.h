// The constant vector that is subtracted from every row of a view before products are formed.
#pragma once
#include <cstddef>

#include "cpu/moment_store.h"

namespace streamcca {

// From the first `rows` rows (row-major, rows x width): the column mean, rounded to a multiple of a power of
// two between 1/16 and 1/8 of the column's standard deviation, then to the product type. A mean that is off
// by 1/16 deviation costs nothing, and a shift of few bits keeps x - shift exact for values on a coarse grid
// (zeros of a ReLU, bfloat16 rows), whose products then add without rounding; with the plain mean such
// repeated values round the same way in every block. A constant column is shifted by its value, as far as
// the product type holds it. Without rows the shift is zero.
// With `keep_narrow`, which is for units that multiply bfloat16 numbers (matrix_unit.h), a column of bfloat16 values whose mean is at most
// one deviation is not shifted: it then stays what it is. Its moments about zero are at most twice those about the mean, and the shorter
// chains of the unit make up for that. (The chains of the vector kernels do not: squares of odd integers are all 1 modulo 8, so unshifted
// narrow values round the same way again and again, to 8e-7 on the diagonal.)
void choose_shift(const double* values, std::size_t rows, std::size_t width, Products products, bool keep_narrow, double* shift);

}  // namespace streamcca
