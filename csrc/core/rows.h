// A borrowed, read-only batch of rows: any strides, in bytes, also negative, zero or misaligned.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace streamcca {

struct Rows {
  const unsigned char* data = nullptr;
  std::size_t rows = 0;
  std::size_t cols = 0;
  std::ptrdiff_t row_stride = 0;  // bytes from one row to the next
  std::ptrdiff_t col_stride = 0;  // bytes from one column to the next
  DType dtype = DType::f32;

  const unsigned char* row(std::size_t i) const { return data + static_cast<std::ptrdiff_t>(i) * row_stride; }
  const unsigned char* element(std::size_t i, std::size_t j) const { return row(i) + static_cast<std::ptrdiff_t>(j) * col_stride; }
};

// Exact value of one element as float64; for error messages, not for hot loops.
double element_value(const Rows& rows, std::size_t i, std::size_t j);

// Exact values of rows [first, first + count) as float64, row-major.
void copy_values(const Rows& rows, std::size_t first, std::size_t count, double* out);

}  // namespace streamcca
