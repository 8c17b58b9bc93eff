// How kernels read the rows of a batch.
#pragma once
#include "cuda/device.h"
#include "cuda/kernels.h"

namespace streamcca::cuda {

constexpr std::size_t ceil_div(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

STREAMCCA_DEVICE std::size_t row_of(const Batch& batch, std::size_t k) {
  return batch.list ? static_cast<std::size_t>(batch.list[batch.first + k]) : batch.first + k;
}
STREAMCCA_DEVICE double root_of(const Batch& batch, std::size_t k, std::size_t row) {
  if (batch.bad && batch.bad[row]) return 0;
  return batch.roots ? batch.roots[batch.first + k] : 1;
}

constexpr std::size_t bytes_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

// Whether rows can be read 16 bytes at a time.
STREAMCCA_BOTH bool lies_in_chunks(const Rows& rows) {
  return rows.col_stride == static_cast<std::ptrdiff_t>(bytes_of(rows.dtype)) && rows.row_stride % 16 == 0 &&
         rows.sample_stride % 16 == 0 && reinterpret_cast<std::uintptr_t>(rows.data) % 16 == 0;
}

struct alignas(16) Chunk {
  std::uint32_t word[4];
};
struct alignas(16) TwoDoubles {
  double x, y;
};
STREAMCCA_DEVICE Chunk load_chunk(const unsigned char* p) { return *reinterpret_cast<const Chunk*>(p); }

STREAMCCA_DEVICE std::size_t magnitude(std::ptrdiff_t stride) { return static_cast<std::size_t>(stride < 0 ? -stride : stride); }
// Whether neighboring threads should read neighboring rows instead of columns: channels first.
STREAMCCA_DEVICE bool rows_lie_closer(const Rows& rows) { return magnitude(rows.row_stride) < magnitude(rows.col_stride); }

// Element e of a piece of `rows` x kTile, in the order in which memory is read best.
struct Place {
  std::size_t row, column;
};
STREAMCCA_DEVICE Place place_of(std::size_t e, std::size_t rows, bool by_rows) {
  if (by_rows) return {e % rows, e / rows};
  return {e / kTile, e % kTile};
}

}  // namespace streamcca::cuda
