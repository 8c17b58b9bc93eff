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
void choose_shift(const double* values, std::size_t rows, std::size_t width, Products products, double* shift);

}  // namespace streamcca
