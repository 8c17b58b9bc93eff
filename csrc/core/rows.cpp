#include "core/rows.h"

#include <cmath>
#include <cstring>

namespace streamcca {
namespace {

template <class T>
T load(const unsigned char* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

double half_value(std::uint16_t h) {
  const int exponent = (h >> 10) & 0x1f;
  const int fraction = h & 0x3ff;
  double value;
  if (exponent == 0x1f) {
    value = fraction ? std::nan("") : HUGE_VAL;
  } else if (exponent == 0) {
    value = std::ldexp(fraction, -24);
  } else {
    value = std::ldexp(fraction | 0x400, exponent - 25);
  }
  return h & 0x8000 ? -value : value;
}

double bfloat_value(std::uint16_t b) {
  const std::uint32_t bits = static_cast<std::uint32_t>(b) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

double half_at(const unsigned char* p) { return half_value(load<std::uint16_t>(p)); }
double bfloat_at(const unsigned char* p) { return bfloat_value(load<std::uint16_t>(p)); }
double float_at(const unsigned char* p) { return static_cast<double>(load<float>(p)); }

template <double (*Value)(const unsigned char*)>
void copy_as(const Rows& rows, std::size_t first, std::size_t count, double* out) {
  for (std::size_t i = first; i < first + count; ++i) {
    for (std::size_t j = 0; j < rows.cols; ++j) *out++ = Value(rows.element(i, j));
  }
}

}  // namespace

void copy_values(const Rows& rows, std::size_t first, std::size_t count, double* out) {
  switch (rows.dtype) {
    case DType::f16: return copy_as<half_at>(rows, first, count, out);
    case DType::bf16: return copy_as<bfloat_at>(rows, first, count, out);
    case DType::f32: return copy_as<float_at>(rows, first, count, out);
    case DType::f64: return copy_as<load<double>>(rows, first, count, out);
  }
}

double element_value(const Rows& rows, std::size_t i, std::size_t j) {
  const unsigned char* p = rows.element(i, j);
  switch (rows.dtype) {
    case DType::f16: return half_at(p);
    case DType::bf16: return bfloat_at(p);
    case DType::f32: return float_at(p);
    case DType::f64: return load<double>(p);
  }
  return 0;
}

}  // namespace streamcca
