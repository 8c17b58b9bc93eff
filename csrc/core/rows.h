// A borrowed, read-only batch of rows: any strides, in bytes, also negative, zero or misaligned.
#pragma once
#include <algorithm>
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
  // If not 0, rows come in samples of so many (positions of a map whose channels come first), one sample `sample_stride` bytes
  // after the other; `row_stride` holds inside a sample.
  std::size_t sample_rows = 0;
  std::ptrdiff_t sample_stride = 0;

  constexpr const unsigned char* row(std::size_t i) const {
    if (!sample_rows) return data + static_cast<std::ptrdiff_t>(i) * row_stride;
    const auto sample = static_cast<std::ptrdiff_t>(i / sample_rows), inside = static_cast<std::ptrdiff_t>(i % sample_rows);
    return data + sample * sample_stride + inside * row_stride;
  }
  // How many of `count` rows from `first` on lie `row_stride` apart.
  std::size_t run_from(std::size_t first, std::size_t count) const {
    return sample_rows ? std::min(count, sample_rows - first % sample_rows) : count;
  }
  constexpr const unsigned char* element(std::size_t i, std::size_t j) const {
    return row(i) + static_cast<std::ptrdiff_t>(j) * col_stride;
  }
};

// Exact value of one element as float64; for error messages, not for hot loops.
double element_value(const Rows& rows, std::size_t i, std::size_t j);

// Exact values of rows [first, first + count) as float64, row-major.
void copy_values(const Rows& rows, std::size_t first, std::size_t count, double* out);

}  // namespace streamcca
