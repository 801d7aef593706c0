// Vectors of 16 floats; products of bytes by vpdpbusd, of bf16 pairs by vdpbf16ps. Without ZWEAVE_BF16, for
// processors that have no instructions for bf16, pairs are split into halves that are multiplied in float32.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "cpu/simd/kernels.h"

namespace zweave {
namespace {

struct Simd {
#ifdef ZWEAVE_BF16
  static constexpr const char* name = "avx512";
#else
  static constexpr const char* name = "avx512_vnni";
#endif
  static constexpr int width = 16;
  template <class T>
  static constexpr int max_rows = 12;
  static constexpr int tile_panels = 2;
  static constexpr int streamed_rows = 4;
  static constexpr int integer_rows = 6;
  static constexpr int integer_unroll = 8;  // all steps of a block
  static constexpr int grid_rows = 6;
  static constexpr int two_pass_rows = 5;
  static constexpr int byte_offset = 128;
  static constexpr int mix_rows = 4;
  static constexpr int mix_vectors = 4;
  static constexpr int value_rows = 6;
  static constexpr int value_vectors = 4;

  using F = __m512;
  using Pair = __m512i;
  using I = __m512i;
  using Bytes = __m512i;

  static __mmask16 first(int64_t n) { return n >= width ? __mmask16(0xffff) : __mmask16((1u << n) - 1); }

  static F set1(float x) { return _mm512_set1_ps(x); }
  static F load(const float* at) { return _mm512_loadu_ps(at); }
  static F load(const float* at, int64_t n) { return _mm512_maskz_loadu_ps(first(n), at); }
  static F widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
  static F load(const bf16* at) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))); }
  static F load(const bf16* at, int64_t n) { return widen(_mm256_maskz_loadu_epi16(first(n), at)); }
  static void store(float* at, F x) { _mm512_storeu_ps(at, x); }
  static void store(float* at, F x, int64_t n) { _mm512_mask_storeu_ps(at, first(n), x); }
  static __m256i narrow(F x) {
#ifdef ZWEAVE_BF16
    const __m256bh y = _mm512_cvtneps_pbh(x);
    __m256i bits;
    std::memcpy(&bits, &y, sizeof(bits));
    return bits;
#else
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(quiet, 16));
#endif
  }
  static void store(bf16* at, F x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), narrow(x)); }
  static void store(bf16* at, F x, int64_t n) { _mm256_mask_storeu_epi16(at, first(n), narrow(x)); }

  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F scale_power(F p, F n) { return _mm512_scalef_ps(p, n); }
  static float reduce_add(F x) { return _mm512_reduce_add_ps(x); }
  static float reduce_max(F x) { return _mm512_reduce_max_ps(x); }

  static F weights(const float* at) { return load(at); }
  static Pair weights(const bf16* at) { return _mm512_loadu_si512(at); }
  static F even(Pair x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }
  static F odd(Pair x) {
    return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(int(0xffff0000))));
  }
  static F broadcast(const float* at) { return _mm512_set1_ps(*at); }
  static Pair broadcast(const bf16* at) {
    int32_t pair;
    std::memcpy(&pair, at, 4);
    return _mm512_set1_epi32(pair);
  }
  static Pair broadcast_last(const bf16* at) { return _mm512_set1_epi32(at->bits); }
  static F multiply_add(F sum, F w, F x) { return fma(w, x, sum); }
  static F multiply_add(F sum, Pair w, Pair x) {
#ifdef ZWEAVE_BF16
    return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x);
#else
    return fma(odd(w), odd(x), fma(even(w), even(x), sum));
#endif
  }

  static F load_halves(const char* at) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  }
  // Inputs 2 pair and 2 pair + 1 of a line of codes on a grid, of `width` outputs.
  struct Two {
    F even, odd;
  };
  template <int bits, int origin>
  static Two codes(const char* at, int pair, const float*) {
    const __m512i line = _mm512_loadu_si512(at);
    if constexpr (bits == 8) {
      const __m512i even = _mm512_srai_epi32(_mm512_slli_epi32(line, 24 - 8 * pair), 24);
      const __m512i odd = _mm512_srai_epi32(_mm512_slli_epi32(line, 8 - 8 * pair), 24);
      return {_mm512_cvtepi32_ps(even), _mm512_cvtepi32_ps(odd)};
    }
    const __m512i mask = _mm512_set1_epi32(15), middle = _mm512_set1_epi32(origin);
    const __m512i even = _mm512_and_si512(_mm512_srli_epi32(line, 4 * nibble_of(pair)), mask);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(line, 16 + 4 * nibble_of(pair)), mask);
    return {_mm512_cvtepi32_ps(_mm512_sub_epi32(even, middle)),
            _mm512_cvtepi32_ps(_mm512_sub_epi32(odd, middle))};
  }
  template <int bits, int origin>
  static Pair codes(const char* at, int pair, const bf16* x) {
    if constexpr (bits == 8) {
      const Two two = codes<bits, origin>(at, pair, static_cast<const float*>(nullptr));
      // Whole numbers of eight bits are bf16 in their upper halves.
      const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(two.even), 16);
      const __m512i high = _mm512_and_si512(_mm512_castps_si512(two.odd), _mm512_set1_epi32(int(0xffff0000)));
      return _mm512_or_si512(low, high);
    }
    // The lookup takes the lowest five bits of each half of a lane, four of which are the code: the table
    // repeats.
    const __m512i line = _mm512_loadu_si512(at);
    return _mm512_permutexvar_epi16(_mm512_srli_epi16(line, 4 * nibble_of(pair)), code_table<origin>());
  }
  // bf16 of code - origin, twice.
  template <int origin>
  static Pair code_table() {
    const __m512 numbers = _mm512_sub_ps(_mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                         set1(float(origin)));
    return _mm512_broadcast_i64x4(narrow(numbers));
  }

  // Weights as vpdpbusd wants them, unsigned: q + 128, or the nibbles as they are; inputs are signed.
  static Bytes bytes(const int8_t* at) {
    return _mm512_xor_si512(_mm512_loadu_si512(at), _mm512_set1_epi8(char(0x80)));
  }
  static void nibbles(const uint8_t* at, Bytes& low, Bytes& high) {
    const __m512i both = _mm512_loadu_si512(at), mask = _mm512_set1_epi8(15);
    low = _mm512_and_si512(both, mask);
    high = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
  }
  static Bytes broadcast(const int8_t* at) {
    int32_t four;
    std::memcpy(&four, at, 4);
    return _mm512_set1_epi32(four);
  }
  static I whole(int32_t x) { return _mm512_set1_epi32(x); }
  // As assembly: around the intrinsic GCC 12 copies and spills the sums of tall tiles.
  static I dot(I sum, Bytes w, Bytes x) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
    return sum;
  }
  static I dot_nibbles(I sum, Bytes w, Bytes x) { return dot(sum, w, x); }
  static I settle_nibbles(I sum) { return sum; }
  template <int bits>
  static I shift_left(I x) {
    return _mm512_slli_epi32(x, bits);
  }
  static F to_float(I x) { return _mm512_cvtepi32_ps(x); }
  static I to_whole(F x) { return _mm512_cvtps_epi32(x); }
  static I add(I a, I b) { return _mm512_add_epi32(a, b); }
  static int32_t reduce_add(I x) { return _mm512_reduce_add_epi32(x); }
  // 64 numbers from -128 to 127.
  static void store_bytes(int8_t* at, const I (&x)[4]) {
    const __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(x[0], x[1]), _mm512_packs_epi32(x[2], x[3]));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(at, _mm512_permutexvar_epi32(order, bytes));
  }
  static __m128i as_bytes(I x) {
    const __m128i order = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
    return _mm_shuffle_epi8(_mm512_cvtepi32_epi8(x), order);
  }
  static void store_wholes(int8_t* at, const I (&high)[2], const I (&low)[2]) {
    for (int i = 0; i < 2; ++i, at += 32) {
      const __m128i upper = as_bytes(high[i]), lower = as_bytes(low[i]);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm_unpacklo_epi32(upper, lower));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(at + 16), _mm_unpackhi_epi32(upper, lower));
    }
  }
  // The largest magnitude of 64; infinity or NaN if one of them is. Magnitudes of bf16 are ordered as their
  // bits are.
  static float peak(const bf16* at) {
    const __m512i magnitude = _mm512_set1_epi16(0x7fff);
    const __m512i low = _mm512_and_si512(_mm512_loadu_si512(at), magnitude);
    const __m512i high = _mm512_and_si512(_mm512_loadu_si512(at + 32), magnitude);
    const __m512i both = _mm512_max_epu16(low, high);
    const __m256i four = _mm256_max_epu16(_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64(both, 1));
    const __m128i two = _mm_max_epu16(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
    // There is a horizontal minimum, of the complements then.
    const __m128i least = _mm_minpos_epu16(_mm_xor_si128(two, _mm_set1_epi16(-1)));
    const uint32_t bits = uint32_t(uint16_t(~_mm_extract_epi16(least, 0))) << 16;
    float peak;
    std::memcpy(&peak, &bits, 4);
    return peak;
  }

  static void transpose(const char* const* from, int64_t offset, char* to, int64_t stride) {
    __m512i row[16], a[16];
    for (int i = 0; i < 16; ++i) row[i] = _mm512_loadu_si512(from[i] + offset);
    for (int i = 0; i < 16; i += 2) {
      a[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
      a[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      row[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
      row[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
      row[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
      row[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
      const __m512i even_low = _mm512_shuffle_i32x4(row[i], row[i + 4], 0x88);
      const __m512i odd_low = _mm512_shuffle_i32x4(row[i], row[i + 4], 0xdd);
      const __m512i even_high = _mm512_shuffle_i32x4(row[i + 8], row[i + 12], 0x88);
      const __m512i odd_high = _mm512_shuffle_i32x4(row[i + 8], row[i + 12], 0xdd);
      _mm512_storeu_si512(to + i * stride, _mm512_shuffle_i32x4(even_low, even_high, 0x88));
      _mm512_storeu_si512(to + (i + 4) * stride, _mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
      _mm512_storeu_si512(to + (i + 8) * stride, _mm512_shuffle_i32x4(even_low, even_high, 0xdd));
      _mm512_storeu_si512(to + (i + 12) * stride, _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
    }
  }
};

}  // namespace
}  // namespace zweave
