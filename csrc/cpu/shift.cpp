#include "cpu/shift.h"

#include <cmath>
#include <cstdint>
#include <cstring>

namespace streamcca {
namespace {

// Whether bfloat16 holds it.
bool is_narrow(double x) {
  const float single = static_cast<float>(x);
  std::uint32_t bits;
  std::memcpy(&bits, &single, sizeof bits);
  return static_cast<double>(single) == x && (bits & 0xffff) == 0;
}

double column_shift(const double* column, std::size_t rows, std::size_t stride, bool keep_narrow) {
  constexpr double few_deviations = 1;
  double sum = 0;
  bool constant = true, narrow = keep_narrow;
  for (std::size_t i = 0; i < rows; ++i) {
    const double x = column[i * stride];
    sum += x - column[0];
    constant = constant && x == column[0];
    narrow = narrow && is_narrow(x);
  }
  if (constant) return column[0];
  const double mean = column[0] + sum / static_cast<double>(rows);
  double squares = 0;
  for (std::size_t i = 0; i < rows; ++i) squares += (column[i * stride] - mean) * (column[i * stride] - mean);
  const double deviation = std::sqrt(squares / static_cast<double>(rows));
  if (narrow && std::fabs(mean) <= few_deviations * deviation) return 0;
  const double grid = std::exp2(std::floor(std::log2(deviation / 8)));
  const double shift = grid * std::nearbyint(mean / grid);
  return std::isfinite(shift) ? shift : 0;  // rows that are not finite, let through by request
}

}  // namespace

void choose_shift(const double* values, std::size_t rows, std::size_t width, Products products, bool keep_narrow, double* shift) {
  for (std::size_t c = 0; c < width; ++c) {
    shift[c] = rows ? column_shift(values + c, rows, width, keep_narrow) : 0;
    if (products == Products::f32) shift[c] = static_cast<double>(static_cast<float>(shift[c]));
  }
}

}  // namespace streamcca
