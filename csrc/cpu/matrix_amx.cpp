// The matrix unit of Intel CPUs (AMX tiles of 16 lines). Contract: matrix_unit.h.
#include <immintrin.h>
#include <stdint.h>

#include "cpu/kernels.h"
#include "cpu/matrix_unit.h"
#ifdef STREAMCCA_EMULATE_AMX
#include "cpu/tiles_emulated.h"
#endif

namespace streamcca {
namespace {

constexpr size_t kLines = 16;
constexpr size_t kLanes = kGroup<float>;

inline size_t chunks_in(size_t rows, size_t chunk) { return (rows + chunk - 1) / chunk; }
inline __m512 row_or_zero(const float* group, size_t k, size_t rows) {
  return k < rows ? _mm512_load_ps(group + k * kLanes) : _mm512_setzero_ps();
}

// ---------------------------------------------------------------- look

// The unit of a column is its largest magnitude's power of two, divided by 2^22, so that values become integers below 2^23; and
// twice that where the largest would round to more than three digits hold, 2^23 - 32896.
inline __m512i unit_exponents(__m512i largest) {
  const __m512i exponent = _mm512_srli_epi32(largest, 23);
  const __m512i fraction = _mm512_and_si512(largest, _mm512_set1_epi32(0x7fffff));
  const __mmask16 full = _mm512_cmpge_epu32_mask(fraction, _mm512_set1_epi32(0x800000 - 65793));
  return _mm512_mask_add_epi32(exponent, full, exponent, _mm512_set1_epi32(1));  // biased by 127, not yet divided
}

// Powers of two of which a float32 holds the inverse, too, with room.
inline bool outside(__m512i largest, int low, int high) {
  const __mmask16 live = _mm512_test_epi32_mask(largest, largest);
  const __mmask16 small = _mm512_mask_cmplt_epu32_mask(live, largest, _mm512_set1_epi32((127 + low) << 23));
  const __mmask16 large = _mm512_mask_cmpgt_epu32_mask(live, largest, _mm512_set1_epi32((127 + high) << 23));
  return (small | large) != 0;
}

Fit look(const float* group, size_t rows, double* units) {
  __m512i used = _mm512_setzero_si512(), largest = _mm512_setzero_si512();
  for (size_t k = 0; k < rows; ++k) {
    const __m512i bits = _mm512_load_si512(group + k * kLanes);
    used = _mm512_or_si512(used, bits);
    largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
  }
  if (outside(largest, -100, 100)) return Fit::unfit;
  alignas(64) int32_t exponents[kLanes];
  _mm512_store_si512(exponents, unit_exponents(largest));
  for (size_t c = 0; c < kLanes; ++c) {
    const uint64_t bits = static_cast<uint64_t>(exponents[c] + 1023 - 127 - 22) << 52;
    __builtin_memcpy(units + c, &bits, sizeof bits);
  }
  const bool wide = _mm512_test_epi32_mask(used, _mm512_set1_epi32(0xffff)) != 0;
  return wide || outside(largest, -40, 62) ? Fit::digits : Fit::narrow;  // the unit takes numbers below 2^-126 for zero
}

// ---------------------------------------------------------------- split

// 16 x 16 values of 32 bits, rows to columns.
inline void transpose(const unsigned char* in, unsigned char* out) {
  __m512i a[kLines], b[kLines];
#pragma GCC unroll 16
  for (size_t i = 0; i < kLines; ++i) a[i] = _mm512_load_si512(in + i * kLineBytes);
#pragma GCC unroll 8
  for (size_t i = 0; i < kLines; i += 2) b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]), b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
#pragma GCC unroll 4
  for (size_t i = 0; i < kLines; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]), a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]), a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; ++i) {
    b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88), b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
    b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88), b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; ++i) {
    _mm512_store_si512(out + i * kLineBytes, _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88));
    _mm512_store_si512(out + (i + 4) * kLineBytes, _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0x88));
    _mm512_store_si512(out + (i + 8) * kLineBytes, _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd));
    _mm512_store_si512(out + (i + 12) * kLineBytes, _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0xdd));
  }
}

// Rows 2k and 2k + 1, column by column.
inline __m512i narrow_pair(__m512 even, __m512 odd) {
  return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(even), 16), _mm512_castps_si512(odd));
}

void split_narrow(const float* group, size_t rows, unsigned char* split, unsigned char* turned) {
  for (size_t first = 0; first < rows; first += kNarrowChunk, split += kChunkBytes, turned += kChunkBytes) {
    for (size_t line = 0; line < kLines; ++line) {
      const size_t k = first + 2 * line;
      _mm512_store_si512(split + line * kLineBytes, narrow_pair(row_or_zero(group, k, rows), row_or_zero(group, k + 1, rows)));
    }
    transpose(split, turned);
  }
}

// The three digits of each value, lowest in the lowest byte. Adding 0x808080 makes bytes of digits + 128; flipping their highest
// bits takes the 128 away again.
inline __m512i digits_of(__m512 row) {
  const __m512i bias = _mm512_set1_epi32(0x808080);
  return _mm512_xor_si512(_mm512_add_epi32(_mm512_cvtps_epi32(row), bias), bias);
}

inline __m512i insert(__m512i into, __m512i from, int mask) {
  return _mm512_ternarylogic_epi32(into, from, _mm512_set1_epi32(mask), 0xf8);  // into | (from & mask)
}

// One digit of four rows, row by row in the bytes of each column.
template <int Byte>
inline __m512i gather(const __m512i* rows) {
  constexpr int down = 8 * Byte;
  const auto move = [&](size_t r) {
    const int up = 8 * static_cast<int>(r) - down;
    return up >= 0 ? _mm512_slli_epi32(rows[r], static_cast<unsigned>(up)) : _mm512_srli_epi32(rows[r], static_cast<unsigned>(-up));
  };
  __m512i four = _mm512_and_si512(move(0), _mm512_set1_epi32(0xff));
  four = insert(four, move(1), 0xff00);
  four = insert(four, move(2), 0xff0000);
  return insert(four, move(3), static_cast<int>(0xff000000u));
}

// Whether the products of the fourth order count beside the sum of squares of a column, which is in its units.
inline bool counts_beside(__m512 squares) {
  const __mmask16 live = _mm512_cmp_ps_mask(squares, _mm512_setzero_ps(), _CMP_GT_OQ);
  return _mm512_mask_cmp_ps_mask(live, squares, _mm512_set1_ps(kFourthOrderCounts), _CMP_LT_OQ) != 0;
}

bool split_digits(const float* group, size_t rows, const double* units, unsigned char* split, unsigned char* turned) {
  alignas(64) float scales[kLanes];
  for (size_t c = 0; c < kLanes; ++c) scales[c] = static_cast<float>(1 / units[c]);
  const __m512 scale = _mm512_load_ps(scales);
  __m512 squares = _mm512_setzero_ps();
  for (size_t first = 0; first < rows; first += kDigitChunk, split += kChunkBytes, turned += kChunkBytes) {
    for (size_t line = 0; line < kLines; ++line) {
      __m512i four[4];
#pragma GCC unroll 4
      for (size_t r = 0; r < 4; ++r) {
        const __m512 row = _mm512_mul_ps(row_or_zero(group, first + 4 * line + r, rows), scale);
        squares = _mm512_fmadd_ps(row, row, squares);
        four[r] = digits_of(row);
      }
      unsigned char* to = split + line * kLineBytes;
      _mm512_store_si512(to, gather<2>(four));
      _mm512_store_si512(to + kDigitBytes, gather<1>(four));
      _mm512_store_si512(to + 2 * kDigitBytes, gather<0>(four));
    }
    for (size_t digit = 0; digit < kDigits; ++digit) transpose(split + digit * kDigitBytes, turned + digit * kDigitBytes);
  }
  return counts_beside(squares);
}

// ---------------------------------------------------------------- waiting sums

// `sums` are one matrix of float32, kSide x columns, or one of int32 for each order of digits, kSide x 16.
inline void add_row(Waiting* w) {
  const size_t row = kSide - w->rows;
  double* out = w->out + row * w->stride;
  if (w->orders) {
    const int32_t* high = reinterpret_cast<const int32_t*>(w->sums) + row * kLanes;
    const __m512d row_unit = _mm512_set1_pd((w->orders == 3 ? 65536 : 256) * w->row_units[row]);  // of the lowest order
#pragma GCC unroll 2
    for (size_t c = 0; c < kLanes; c += 8) {
      const auto order = [&](size_t n) {
        return _mm512_cvtepi32_pd(_mm256_load_si256(reinterpret_cast<const __m256i*>(high + n * kSide * kLanes + c)));
      };
      const __m512d low = _mm512_fmadd_pd(order(1), _mm512_set1_pd(256), order(2));
      __m512d sum = _mm512_fmadd_pd(order(0), _mm512_set1_pd(65536), low);
      if (w->orders == 4) sum = _mm512_fmadd_pd(sum, _mm512_set1_pd(256), order(3));
      const __m512d unit = _mm512_mul_pd(row_unit, _mm512_load_pd(w->column_units + c));
      _mm512_storeu_pd(out + c, _mm512_fmadd_pd(sum, unit, _mm512_loadu_pd(out + c)));
    }
  } else {
    const float* sums = reinterpret_cast<const float*>(w->sums) + row * w->stride;
    for (size_t c = 0; c < w->stride; c += 8)
      _mm512_storeu_pd(out + c, _mm512_add_pd(_mm512_loadu_pd(out + c), _mm512_cvtps_pd(_mm256_load_ps(sums + c))));
  }
  --w->rows;
}

inline void add_rows(Waiting* w, size_t count) {
  for (; count && w->rows; --count) add_row(w);
}

void finish(Waiting* w) { add_rows(w, w->rows); }

// ---------------------------------------------------------------- products

#ifdef STREAMCCA_EMULATE_AMX
void enter() {}
void leave() {}
#else
void enter() {
  struct alignas(64) {
    uint8_t palette, start_row, reserved[14];
    uint16_t line_bytes[16];
    uint8_t lines[16];
  } layout = {};
  layout.palette = 1;
  for (int t = 0; t < 8; ++t) layout.line_bytes[t] = kLineBytes, layout.lines[t] = kLines;
  asm volatile("ldtilecfg %0" : : "m"(layout));  // the intrinsic of GCC 12 reads 8 bytes, and the other stores vanish
}

void leave() { _tile_release(); }
#endif

inline void call(const void* from, size_t lines, size_t at) {
  const char* p = static_cast<const char*>(from) + lines * at * kLineBytes;
#pragma GCC unroll 8
  for (size_t i = 0; i < lines; ++i) _mm_prefetch(p + i * kLineBytes, _MM_HINT_T1);
}
inline void call_state(const double* out, size_t lines, size_t at) {
  const char* p = reinterpret_cast<const char*>(out) + lines * at * kLineBytes;
#pragma GCC unroll 16
  for (size_t i = 0; i < lines; ++i) _mm_prefetch(p + i * kLineBytes, _MM_HINT_T0);
}

// Tiles 0 to 3 hold sums: 2 r + c belongs to row group r and column group c. 4 and 5 hold rows, 6 and 7 columns. Column by column, so that
// the first one is free again while the second is in use; with all loads in front the unit waited (65 against 75 % of its peak).
template <size_t Vectors>
void multiply_narrow_tile(size_t depth, const Operand& rows, const Operand& columns, double* out, Waiting* w, const void* ahead) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const size_t chunks = chunks_in(depth, kNarrowChunk);
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    const size_t at = chunk * kChunkBytes;
    _tile_loadd(6, columns.form[0] + at, kLineBytes);
    _tile_loadd(4, rows.form[0] + at, kLineBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, rows.form[1] + at, kLineBytes);
    _tile_dpbf16ps(2, 5, 6);
    if (Vectors > 1) {
      _tile_loadd(7, columns.form[1] + at, kLineBytes);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
    add_rows(w, 2);
    call_state(out, 4 * Vectors, chunk);
    call(ahead, 8, chunk);
  }
  finish(w);
  constexpr size_t across = Vectors * kLanes, stride = across * sizeof(float);
  float* sums = reinterpret_cast<float*>(w->sums);
  _tile_stored(0, sums, stride);
  _tile_stored(2, sums + kLines * across, stride);
  if (Vectors > 1) {
    _tile_stored(1, sums + kLanes, stride);
    _tile_stored(3, sums + kLines * across + kLanes, stride);
  }
  w->out = out;
  w->stride = across;
  w->rows = kSide;
  w->orders = 0;
}

void multiply_narrow(size_t depth, const Operand* rows, const Operand* columns, size_t vectors, double* out, Waiting* w,
                     const void* ahead) {
  (vectors > 1 ? multiply_narrow_tile<2> : multiply_narrow_tile<1>)(depth, *rows, *columns, out, w, ahead);
}

// The fourth order: a middle digit with a low one. Tiles 0 and 1 hold the sums of the two row groups.
inline void multiply_fourth_order(size_t chunks, const Operand& rows, const unsigned char* columns, int32_t* sums) {
  _tile_zero(0);
  _tile_zero(1);
  for (size_t at = 0; at < chunks * kChunkBytes; at += kChunkBytes) {
    for (size_t digit = 1; digit < kDigits; ++digit) {
      _tile_loadd(7, columns + (kDigits - digit) * kDigitBytes + at, kLineBytes);
      _tile_loadd(5, rows.form[0] + digit * kDigitBytes + at, kLineBytes);
      _tile_dpbssd(0, 5, 7);
      _tile_loadd(6, rows.form[1] + digit * kDigitBytes + at, kLineBytes);
      _tile_dpbssd(1, 6, 7);
    }
  }
  _tile_stored(0, sums, kLineBytes);
  _tile_stored(1, sums + kLines * kLanes, kLineBytes);
}

// 32 rows x 16 columns. Tiles 0 to 5 hold sums: 2 n + r belongs to order n and row group r. 6 holds rows, 7 columns.
void multiply_digits_half(size_t depth, const Operand& rows, const unsigned char* columns, const double* units, unsigned orders,
                          double* out, size_t stride, Waiting* w, const void* ahead) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  const size_t chunks = chunks_in(depth, kDigitChunk);
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    const unsigned char* x0 = rows.form[0] + chunk * kChunkBytes;
    const unsigned char* x1 = rows.form[1] + chunk * kChunkBytes;
    const unsigned char* y = columns + chunk * kChunkBytes;
    _tile_loadd(7, y, kLineBytes);
    _tile_loadd(6, x0, kLineBytes);
    _tile_dpbssd(0, 6, 7);
    _tile_loadd(6, x1, kLineBytes);
    _tile_dpbssd(1, 6, 7);
    _tile_loadd(6, x0 + kDigitBytes, kLineBytes);
    _tile_dpbssd(2, 6, 7);
    _tile_loadd(6, x1 + kDigitBytes, kLineBytes);
    _tile_dpbssd(3, 6, 7);
    _tile_loadd(6, x0 + 2 * kDigitBytes, kLineBytes);
    _tile_dpbssd(4, 6, 7);
    _tile_loadd(6, x1 + 2 * kDigitBytes, kLineBytes);
    _tile_dpbssd(5, 6, 7);
    add_rows(w, 2);
    _tile_loadd(7, y + kDigitBytes, kLineBytes);
    _tile_loadd(6, x1 + kDigitBytes, kLineBytes);
    _tile_dpbssd(5, 6, 7);
    _tile_loadd(6, x0 + kDigitBytes, kLineBytes);
    _tile_dpbssd(4, 6, 7);
    _tile_loadd(6, x0, kLineBytes);
    _tile_dpbssd(2, 6, 7);
    _tile_loadd(6, x1, kLineBytes);
    _tile_dpbssd(3, 6, 7);
    _tile_loadd(7, y + 2 * kDigitBytes, kLineBytes);
    _tile_dpbssd(5, 6, 7);
    _tile_loadd(6, x0, kLineBytes);
    _tile_dpbssd(4, 6, 7);
    add_rows(w, 2);
#pragma GCC unroll 4
    for (size_t r = 0; r < 4; ++r) call_state(out + (4 * chunk + r) * stride, 2, 0);
    call(ahead, 8, chunk);
  }
  finish(w);
  int32_t* sums = reinterpret_cast<int32_t*>(w->sums);
  _tile_stored(0, sums, kLineBytes);
  _tile_stored(1, sums + 1 * kLines * kLanes, kLineBytes);
  _tile_stored(2, sums + 2 * kLines * kLanes, kLineBytes);
  _tile_stored(3, sums + 3 * kLines * kLanes, kLineBytes);
  _tile_stored(4, sums + 4 * kLines * kLanes, kLineBytes);
  _tile_stored(5, sums + 5 * kLines * kLanes, kLineBytes);
  if (orders == 4) multiply_fourth_order(chunks, rows, columns, sums + 6 * kLines * kLanes);
  for (size_t i = 0; i < kLanes; ++i) {
    w->row_units[i] = rows.units[0][i];
    w->row_units[kLanes + i] = rows.units[1][i];
    w->column_units[i] = units[i];
  }
  w->out = out;
  w->stride = stride;
  w->rows = kSide;
  w->orders = orders;
}

void multiply_digits(size_t depth, const Operand* rows, const Operand* columns, size_t vectors, double* out, Waiting* w,
                     const void* ahead) {
  const unsigned orders = rows->fourth_order || columns->fourth_order ? 4 : 3;
  for (size_t v = 0; v < vectors; ++v) {
    multiply_digits_half(depth, *rows, columns->form[v], columns->units[v], orders, out + v * kLanes, vectors * kLanes, w,
                         static_cast<const unsigned char*>(ahead) + v * depth / 8 * kLineBytes);
  }
}

// The operands are whatever the tiles hold after enter(): zeros.
double multiply_add(size_t iterations) {
  for (size_t i = 0; i < iterations; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  return 4.0 * 2 * kLines * kLanes * kNarrowChunk * static_cast<double>(iterations);
}

}  // namespace

extern const MatrixUnit matrix_amx;
const MatrixUnit matrix_amx = {look, split_narrow, split_digits, multiply_narrow, multiply_digits, finish, multiply_add, enter, leave};

}  // namespace streamcca
