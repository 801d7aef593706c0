// Vectors of 8 floats. bf16 pairs are split into their even and odd halves and multiplied in float32.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "cpu/simd/kernels.h"

namespace zweave {
namespace {

struct Simd {
  static constexpr const char* name = "avx2";
  static constexpr int width = 8;
  // The halves of bf16 pairs take registers of their own.
  template <class T>
  static constexpr int max_rows = sizeof(T) == 2 ? 4 : 6;
  static constexpr int tile_panels = 1;
  static constexpr int streamed_rows = 2;
  static constexpr int integer_rows = 4;
  static constexpr int integer_unroll = 1;
  static constexpr int grid_rows = 2;
  static constexpr int two_pass_rows = grid_rows + 1;  // a pass is for both bytes
  static constexpr int byte_offset = 0;
  static constexpr int mix_rows = 2;
  static constexpr int mix_vectors = 4;
  static constexpr int value_rows = 6;
  static constexpr int value_vectors = 2;

  using F = __m256;
  struct Pair {
    F even, odd;
  };
  using I = __m256i;
  using Bytes = __m256i;

  static __m256i first(int64_t n) {
    const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(n)), index);
  }

  static F set1(float x) { return _mm256_set1_ps(x); }
  static F load(const float* at) { return _mm256_loadu_ps(at); }
  static F load(const float* at, int64_t n) { return _mm256_maskload_ps(at, first(n)); }
  static F widen(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
  static F load(const bf16* at) { return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))); }
  static F load(const bf16* at, int64_t n) {
    bf16 part[width] = {};
    for (int i = 0; i < width && i < n; ++i) part[i] = at[i];
    return load(part);
  }
  static void store(float* at, F x) { _mm256_storeu_ps(at, x); }
  static void store(float* at, F x, int64_t n) { _mm256_maskstore_ps(at, first(n), x); }
  static void store(bf16* at, F x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at), packed);
  }
  static void store(bf16* at, F x, int64_t n) {
    bf16 part[width];
    store(part, x);
    for (int i = 0; i < width && i < n; ++i) at[i] = part[i];
  }

  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F power_of_two(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  }
  static F scale_power(F p, F n) {
    const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    return mul(mul(p, power_of_two(half)), power_of_two(_mm256_sub_epi32(whole, half)));
  }
  static float reduce_add(F x) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
  }
  static float reduce_max(F x) {
    __m128 best = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    best = _mm_max_ps(best, _mm_movehl_ps(best, best));
    return _mm_cvtss_f32(_mm_max_ss(best, _mm_movehdup_ps(best)));
  }

  static Pair split(__m256i x) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(x, 16)),
            _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(int(0xffff0000))))};
  }
  static F weights(const float* at) { return load(at); }
  static Pair weights(const bf16* at) {
    return split(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  }
  static F even(Pair x) { return x.even; }
  static F odd(Pair x) { return x.odd; }
  static F broadcast(const float* at) { return _mm256_broadcast_ss(at); }
  static Pair broadcast(const bf16* at) {
    int32_t pair;
    std::memcpy(&pair, at, 4);
    return split(_mm256_set1_epi32(pair));
  }
  static Pair broadcast_last(const bf16* at) { return split(_mm256_set1_epi32(at->bits)); }
  static F multiply_add(F sum, F w, F x) { return fma(w, x, sum); }
  static F multiply_add(F sum, Pair w, Pair x) { return fma(w.odd, x.odd, fma(w.even, x.even, sum)); }

  static F load_halves(const char* at) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  }
  using Two = Pair;
  template <int bits, int origin, class T>
  static Two codes(const char* at, int pair, const T*) {
    const __m256i line = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    if constexpr (bits == 8) {
      const __m256i even = _mm256_srai_epi32(_mm256_slli_epi32(line, 24 - 8 * pair), 24);
      const __m256i odd = _mm256_srai_epi32(_mm256_slli_epi32(line, 8 - 8 * pair), 24);
      return {_mm256_cvtepi32_ps(even), _mm256_cvtepi32_ps(odd)};
    }
    const __m256i mask = _mm256_set1_epi32(15), middle = _mm256_set1_epi32(origin);
    const __m256i even = _mm256_and_si256(_mm256_srli_epi32(line, 4 * nibble_of(pair)), mask);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(line, 16 + 4 * nibble_of(pair)), mask);
    return {_mm256_cvtepi32_ps(_mm256_sub_epi32(even, middle)),
            _mm256_cvtepi32_ps(_mm256_sub_epi32(odd, middle))};
  }

  static Bytes bytes(const int8_t* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }
  static void nibbles(const uint8_t* at, Bytes& low, Bytes& high) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    const __m256i mask = _mm256_set1_epi8(15);
    low = _mm256_and_si256(both, mask);
    high = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
  }
  static Bytes broadcast(const int8_t* at) {
    int32_t four;
    std::memcpy(&four, at, 4);
    return _mm256_set1_epi32(four);
  }
  static I whole(int32_t x) { return _mm256_set1_epi32(x); }
  // |w| times x under w's sign: a sum of two such products stays below 2^15, where vpmaddubsw would saturate.
  static I dot(I sum, Bytes w, Bytes x) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  // Nibbles times bytes, of which eight sums of two stay below 2^15: they are added up in halves.
  static I dot_nibbles(I sum, Bytes w, Bytes x) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x)); }
  static I settle_nibbles(I sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }
  template <int bits>
  static I shift_left(I x) {
    return _mm256_slli_epi32(x, bits);
  }
  static F to_float(I x) { return _mm256_cvtepi32_ps(x); }
  static I to_whole(F x) { return _mm256_cvtps_epi32(x); }
  static I add(I a, I b) { return _mm256_add_epi32(a, b); }
  static int32_t reduce_add(I x) {
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    sum = _mm_add_epi32(sum, _mm_unpackhi_epi64(sum, sum));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 1)));
  }
  // 64 numbers from -128 to 127.
  static void store_bytes(int8_t* at, const I (&x)[8]) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int i = 0; i < 8; i += 4) {
      const __m256i low = _mm256_packs_epi32(x[i], x[i + 1]), high = _mm256_packs_epi32(x[i + 2], x[i + 3]);
      const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(at + i * width), bytes);
    }
  }
  static __m128i as_bytes(I low, I high) {
    const __m128i a = _mm_packs_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    const __m128i b = _mm_packs_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    const __m128i order = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
    return _mm_shuffle_epi8(_mm_packs_epi16(a, b), order);
  }
  static void store_wholes(int8_t* at, const I (&high)[4], const I (&low)[4]) {
    for (int i = 0; i < 4; i += 2, at += 32) {
      const __m128i upper = as_bytes(high[i], high[i + 1]), lower = as_bytes(low[i], low[i + 1]);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm_unpacklo_epi32(upper, lower));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(at + 16), _mm_unpackhi_epi32(upper, lower));
    }
  }

  static void transpose(const char* const* from, int64_t offset, char* to, int64_t stride) {
    F row[8], a[8], b[8];
    for (int i = 0; i < 8; ++i) row[i] = load(reinterpret_cast<const float*>(from[i] + offset));
    for (int i = 0; i < 8; i += 2) {
      a[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
      a[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
      b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
      b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
      b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      store(reinterpret_cast<float*>(to + i * stride), _mm256_permute2f128_ps(b[i], b[i + 4], 0x20));
      store(reinterpret_cast<float*>(to + (i + 4) * stride), _mm256_permute2f128_ps(b[i], b[i + 4], 0x31));
    }
  }
};

}  // namespace
}  // namespace zweave
