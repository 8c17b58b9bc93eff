// The eight tile registers of AMX and the instructions that matrix_amx.cpp uses, in plain loops: a build with
// STREAMCCA_EMULATE_AMX=ON runs level `amx` on any CPU with AVX-512, for its tests. Some hundred times slower than the unit, so never in a
// build for users. Sums are formed in the order that Intel documents (TDPBF16PS: sums of even and of odd rows apart, fused), so that the
// error bounds of matrix_unit.h can be tested; that numbers below 2^-126 count as zero there is not emulated.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace streamcca {
namespace {

struct EmulatedTile {
  alignas(64) unsigned char bytes[16 * 64];
};
thread_local EmulatedTile emulated_tiles[8];

inline float widened(uint32_t bits_from_16) {
  float value;
  __builtin_memcpy(&value, &bits_from_16, sizeof value);
  return value;
}

inline void emulate_zero(int t) { __builtin_memset(emulated_tiles[t].bytes, 0, sizeof emulated_tiles[t].bytes); }

inline void emulate_load(int t, const void* from, size_t stride) {
  for (size_t line = 0; line < 16; ++line)
    __builtin_memcpy(emulated_tiles[t].bytes + 64 * line, static_cast<const unsigned char*>(from) + line * stride, 64);
}

inline void emulate_store(int t, void* to, size_t stride) {
  for (size_t line = 0; line < 16; ++line)
    __builtin_memcpy(static_cast<unsigned char*>(to) + line * stride, emulated_tiles[t].bytes + 64 * line, 64);
}

inline void emulate_bfloat16_product(int to, int rows, int columns) {
  float sums[16][16], a[16][32], b[16][32];
  __builtin_memcpy(sums, emulated_tiles[to].bytes, sizeof sums);
  for (size_t line = 0; line < 16; ++line) {
    uint16_t from_a[32], from_b[32];
    __builtin_memcpy(from_a, emulated_tiles[rows].bytes + 64 * line, 64);
    __builtin_memcpy(from_b, emulated_tiles[columns].bytes + 64 * line, 64);
    for (size_t i = 0; i < 32; ++i)
      a[line][i] = widened(static_cast<uint32_t>(from_a[i]) << 16), b[line][i] = widened(static_cast<uint32_t>(from_b[i]) << 16);
  }
  for (size_t m = 0; m < 16; ++m) {
    for (size_t n = 0; n < 16; ++n) {
      float even = 0, odd = 0;
      for (size_t k = 0; k < 16; ++k) {
        even = __builtin_fmaf(a[m][2 * k], b[k][2 * n], even);
        odd = __builtin_fmaf(a[m][2 * k + 1], b[k][2 * n + 1], odd);
      }
      sums[m][n] += even + odd;
    }
  }
  __builtin_memcpy(emulated_tiles[to].bytes, sums, sizeof sums);
}

inline void emulate_integer_product(int to, int rows, int columns) {
  int32_t sums[16][16];
  int8_t a[16][64], b[16][64];
  __builtin_memcpy(sums, emulated_tiles[to].bytes, sizeof sums);
  __builtin_memcpy(a, emulated_tiles[rows].bytes, sizeof a);
  __builtin_memcpy(b, emulated_tiles[columns].bytes, sizeof b);
  for (size_t m = 0; m < 16; ++m) {
    for (size_t k = 0; k < 16; ++k) {
      for (size_t n = 0; n < 16; ++n) {
        for (size_t r = 0; r < 4; ++r) sums[m][n] += a[m][4 * k + r] * b[k][4 * n + r];
      }
    }
  }
  __builtin_memcpy(emulated_tiles[to].bytes, sums, sizeof sums);
}

}  // namespace
}  // namespace streamcca

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#define _tile_zero(t) emulate_zero(t)
#define _tile_loadd(t, from, stride) emulate_load(t, from, stride)
#define _tile_stored(t, to, stride) emulate_store(t, to, stride)
#define _tile_dpbf16ps(to, rows, columns) emulate_bfloat16_product(to, rows, columns)
#define _tile_dpbssd(to, rows, columns) emulate_integer_product(to, rows, columns)
