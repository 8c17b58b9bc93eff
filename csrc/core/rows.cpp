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

}  // namespace

double element_value(const Rows& rows, std::size_t i, std::size_t j) {
  const unsigned char* p = rows.element(i, j);
  switch (rows.dtype) {
    case DType::f16: return half_value(load<std::uint16_t>(p));
    case DType::bf16: return bfloat_value(load<std::uint16_t>(p));
    case DType::f32: return load<float>(p);
    case DType::f64: return load<double>(p);
  }
  return 0;
}

}  // namespace streamcca
