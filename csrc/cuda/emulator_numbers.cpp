// How the emulated device computes: its narrow numbers, and the sums of its tensor cores.
#include <cmath>
#include <cstring>

#include "cuda/emulator.h"
#include "cuda/emulator_detail.h"

namespace streamcca::cuda::emulated {

float from_bfloat16(std::uint16_t b) {
  const std::uint32_t bits = static_cast<std::uint32_t>(b) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

float from_half(std::uint16_t h) {
  const int exponent = (h >> 10) & 0x1f, fraction = h & 0x3ff;
  float value = exponent == 0x1f ? (fraction ? NAN : HUGE_VALF)
                                 : std::ldexp(static_cast<float>(exponent ? fraction | 0x400 : fraction), (exponent ? exponent : 1) - 25);
  return h & 0x8000 ? -value : value;
}

std::uint16_t to_half(float x) {
  const unsigned sign = std::signbit(x) ? 0x8000 : 0;
  const float size = std::fabs(x);
  if (!std::isfinite(x)) return static_cast<std::uint16_t>(sign | (std::isnan(x) ? 0x7e00 : 0x7c00));
  int exponent;
  std::frexp(size, &exponent);  // size = f 2^exponent, f from 1/2 on
  if (size < 0x1p-14f) return static_cast<std::uint16_t>(sign | static_cast<unsigned>(std::ldexp(size, 24)));
  return static_cast<std::uint16_t>(sign | static_cast<unsigned>(exponent + 14) << 10 |
                                    (static_cast<unsigned>(std::ldexp(size, 11 - exponent)) & 0x3ff));
}

// c[n] + sum a[k] b[k][n] over 8 k, for 8 n. Products and c are exact, cut to multiples of the last place of the largest of them, added,
// and cut again to 24 bits: Fasi, Higham, Mikaitis & Pranesh (2021), "Numerical behavior of NVIDIA tensor cores", without the one to three
// bits more that cards since the T4 keep. In float64, where all of this is exact; loops over n that the compiler makes vectors of.
void add_truncated(const float* a, const float (*b)[8], float* c) {
  constexpr unsigned terms = 9, columns = 8;
  double term[terms][columns], largest[columns], scale[columns], sum[columns];
  for (unsigned n = 0; n < columns; ++n) term[8][n] = static_cast<double>(c[n]), largest[n] = std::fabs(term[8][n]), sum[n] = 0;
  for (unsigned k = 0; k < 8; ++k) {
    for (unsigned n = 0; n < columns; ++n) {
      term[k][n] = static_cast<double>(a[k]) * static_cast<double>(b[k][n]);
      largest[n] = std::fabs(term[k][n]) > largest[n] ? std::fabs(term[k][n]) : largest[n];
    }
  }
  double all = 0;
  for (unsigned n = 0; n < columns; ++n) {
    for (unsigned k = 0; k < terms; ++k) all += std::fabs(term[k][n]);
    std::uint64_t bits;  // 2^23 over the power of two below the largest
    std::memcpy(&bits, &largest[n], sizeof bits);
    bits = (std::uint64_t{2046 + 23} << 52) - (bits & (std::uint64_t{0x7ff} << 52));
    std::memcpy(&scale[n], &bits, sizeof bits);
  }
  if (!std::isfinite(all)) {
    for (unsigned n = 0; n < columns; ++n) {
      for (unsigned k = 0; k < terms; ++k) sum[n] += term[k][n];
      c[n] = static_cast<float>(sum[n]);
    }
    return;
  }
  for (unsigned k = 0; k < terms; ++k) {
    for (unsigned n = 0; n < columns; ++n) sum[n] += std::trunc(term[k][n] * scale[n]);
  }
  for (unsigned n = 0; n < columns; ++n) {
    const double exact = sum[n] / scale[n];
    std::uint64_t bits;
    std::memcpy(&bits, &exact, sizeof bits);
    bits &= ~((std::uint64_t{1} << 29) - 1);
    double cut;
    std::memcpy(&cut, &bits, sizeof cut);
    c[n] = largest[n] > 0 ? static_cast<float>(cut) : 0;
  }
}

}  // namespace streamcca::cuda::emulated
