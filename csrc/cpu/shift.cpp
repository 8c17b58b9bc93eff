#include "cpu/shift.h"

#include <cmath>

namespace streamcca {
namespace {

double column_shift(const double* column, std::size_t rows, std::size_t stride) {
  double sum = 0;
  bool constant = true;
  for (std::size_t i = 0; i < rows; ++i) {
    const double x = column[i * stride];
    sum += x - column[0];
    constant = constant && x == column[0];
  }
  if (constant) return column[0];
  const double mean = column[0] + sum / static_cast<double>(rows);
  double squares = 0;
  for (std::size_t i = 0; i < rows; ++i) squares += (column[i * stride] - mean) * (column[i * stride] - mean);
  const double grid = std::exp2(std::floor(std::log2(std::sqrt(squares / static_cast<double>(rows)) / 8)));
  const double shift = grid * std::nearbyint(mean / grid);
  return std::isfinite(shift) ? shift : 0;  // rows that are not finite, let through by request
}

}  // namespace

void choose_shift(const double* values, std::size_t rows, std::size_t width, Products products, double* shift) {
  for (std::size_t c = 0; c < width; ++c) {
    shift[c] = rows ? column_shift(values + c, rows, width) : 0;
    if (products == Products::f32) shift[c] = static_cast<double>(static_cast<float>(shift[c]));
  }
}

}  // namespace streamcca
