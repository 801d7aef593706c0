// Vectors in plain C++: the twin that every other instruction set is tested against, and the one other
// processors use. Included after kernels.h; the same names stand in avx2_simd.h and avx512_simd.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/simd/kernels.h"

namespace zweave {
namespace {

struct Simd {
  static constexpr const char* name = "scalar";
  static constexpr int width = 8;
  // Register tile of a product of Ts: at most this many rows, under so many panels.
  template <class T>
  static constexpr int max_rows = 4;
  static constexpr int tile_panels = 2;
  // Up to this many rows a product is bound by memory alone: it reads one panel at a time and prefetches
  // nothing, since the hardware prefetcher is fastest on a single stream.
  static constexpr int streamed_rows = 4;
  // Of a product with integer weights: rows of the register tile, steps of its loop that are unrolled, and
  // what `bytes` adds to the weights.
  static constexpr int integer_rows = 4;
  static constexpr int integer_unroll = 1;
  static constexpr int byte_offset = 0;
  // Of a product with a grid, whose rows are of two bytes: rows of the register tile, and from how many on it
  // passes over a group for each byte alone.
  static constexpr int grid_rows = 2;
  static constexpr int two_pass_rows = 2;
  // Register tile of a mix.
  static constexpr int mix_rows = 1;
  static constexpr int mix_vectors = 2;
  // Register tile of probabilities times values.
  static constexpr int value_rows = 2;
  static constexpr int value_vectors = 2;

  struct F {
    float lane[width];
  };
  struct Pair {
    F even, odd;
  };
  struct I {
    int32_t lane[width];
  };
  struct Bytes {
    int8_t byte[4 * width];
  };

  static float widen(bf16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
  }
  static bf16 narrow(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (x != x) return {uint16_t((bits >> 16) | 0x40)};
    return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
  }
  static float widen(float x) { return x; }
  static void put(float* at, float x) { *at = x; }
  static void put(bf16* at, float x) { *at = narrow(x); }

  template <class Function>
  static F each(Function function) {
    F y;
    for (int i = 0; i < width; ++i) y.lane[i] = function(i);
    return y;
  }

  static F set1(float x) {
    return each([&](int) { return x; });
  }
  template <class T>
  static F load(const T* at) {
    return each([&](int i) { return widen(at[i]); });
  }
  template <class T>
  static F load(const T* at, int64_t n) {
    return each([&](int i) { return i < n ? widen(at[i]) : 0.0f; });
  }
  template <class T>
  static void store(T* at, F x) {
    for (int i = 0; i < width; ++i) put(at + i, x.lane[i]);
  }
  template <class T>
  static void store(T* at, F x, int64_t n) {
    for (int i = 0; i < width && i < n; ++i) put(at + i, x.lane[i]);
  }

  static F add(F a, F b) {
    return each([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static F sub(F a, F b) {
    return each([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static F mul(F a, F b) {
    return each([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static F div(F a, F b) {
    return each([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  // a * b + c; the scalar twin rounds twice.
  static F fma(F a, F b, F c) {
    return each([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
  }
  // Where an operand is NaN the answer is the second one, as on x86.
  static F max(F a, F b) {
    return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static F min(F a, F b) {
    return each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  // To the nearest whole number where |x| < 2^22: adding 1.5 * 2^23 leaves no room for a fraction.
  static F round(F x) {
    return each([&](int i) { return (x.lane[i] + 12582912.0f) - 12582912.0f; });
  }
  // p * 2^n for whole n from -252 to 254.
  static F scale_power(F p, F n) {
    return each([&](int i) {
      const int whole = n.lane[i] == n.lane[i] ? int(n.lane[i]) : 0, half = whole >> 1;
      const uint32_t low = uint32_t(half + 127) << 23, high = uint32_t(whole - half + 127) << 23;
      float a, b;
      std::memcpy(&a, &low, 4);
      std::memcpy(&b, &high, 4);
      return p.lane[i] * a * b;
    });
  }
  static float reduce_add(F x) {
    float sum = 0;
    for (int i = 0; i < width; ++i) sum += x.lane[i];
    return sum;
  }
  static float reduce_max(F x) {
    float best = x.lane[0];
    for (int i = 1; i < width; ++i) best = x.lane[i] > best ? x.lane[i] : best;
    return best;
  }

  // One pack of inputs of `width` packed outputs, and one pack of a row's inputs in every lane.
  static F weights(const float* at) { return load(at); }
  static Pair weights(const bf16* at) {
    return {each([&](int i) { return widen(at[2 * i]); }), each([&](int i) { return widen(at[2 * i + 1]); })};
  }
  static F even(Pair x) { return x.even; }
  static F odd(Pair x) { return x.odd; }
  static F broadcast(const float* at) { return set1(*at); }
  static Pair broadcast(const bf16* at) { return {set1(widen(at[0])), set1(widen(at[1]))}; }
  static Pair broadcast_last(const bf16* at) { return {set1(widen(at[0])), set1(0)}; }
  static F multiply_add(F sum, F w, F x) { return fma(w, x, sum); }
  static F multiply_add(F sum, Pair w, Pair x) { return fma(w.odd, x.odd, fma(w.even, x.even, sum)); }

  // `width` numbers of half precision.
  static F load_halves(const char* at) {
    return each([&](int i) {
      uint16_t half;
      std::memcpy(&half, at + 2 * i, 2);
      const uint32_t sign = uint32_t(half & 0x8000) << 16, magnitude = half & 0x7fff;
      // The exponent's bias grows by 112; a multiplication does that for subnormal numbers, too.
      uint32_t bits = magnitude << 13;
      float y;
      std::memcpy(&y, &bits, 4);
      y = magnitude < 0x7c00 ? y * 0x1p112f : y;
      std::memcpy(&bits, &y, 4);
      bits |= sign | (magnitude < 0x7c00 ? 0 : 0x7f800000);
      std::memcpy(&y, &bits, 4);
      return y;
    });
  }
  // Inputs 2 pair and 2 pair + 1 of a line of codes on a grid, of `width` outputs.
  using Two = Pair;
  template <int bits, int origin, class T>
  static Two codes(const char* at, int pair, const T*) {
    const auto code = [&](int i, int odd) {
      if constexpr (bits == 8) return float(int8_t(at[4 * i + 2 * odd + pair]));
      const uint8_t byte = uint8_t(at[4 * i + 2 * odd + nibble_of(pair) / 2]);
      return float(int(nibble_of(pair) % 2 ? byte >> 4 : byte & 15) - origin);
    };
    return {each([&](int i) { return code(i, 0); }), each([&](int i) { return code(i, 1); })};
  }

  // Four inputs of `width` outputs of integer weights: int8, or nibbles of two times four inputs, as they
  // are.
  static Bytes bytes(const int8_t* at) {
    Bytes y;
    std::memcpy(y.byte, at, sizeof(y.byte));
    return y;
  }
  static void nibbles(const uint8_t* at, Bytes& low, Bytes& high) {
    for (int i = 0; i < 4 * width; ++i) {
      low.byte[i] = int8_t(at[i] & 15);
      high.byte[i] = int8_t(at[i] >> 4);
    }
  }
  // Four inputs of a row for every output.
  static Bytes broadcast(const int8_t* at) {
    Bytes y;
    for (int i = 0; i < width; ++i) std::memcpy(y.byte + 4 * i, at, 4);
    return y;
  }
  static I whole(int32_t x) {
    I y;
    for (int i = 0; i < width; ++i) y.lane[i] = x;
    return y;
  }
  static I dot(I sum, Bytes w, Bytes x) {
    for (int i = 0; i < 4 * width; ++i) sum.lane[i / 4] += int32_t(w.byte[i]) * x.byte[i];
    return sum;
  }
  // A sum of up to eight products by `dot_nibbles`, begun at zero, and its numbers.
  static I dot_nibbles(I sum, Bytes w, Bytes x) { return dot(sum, w, x); }
  static I settle_nibbles(I sum) { return sum; }
  template <int bits>
  static I shift_left(I x) {
    for (int i = 0; i < width; ++i) x.lane[i] *= 1 << bits;
    return x;
  }
  static F to_float(I x) {
    return each([&](int i) { return float(x.lane[i]); });
  }
  // To the nearest whole number, as `round`.
  static I to_whole(F x) {
    const F rounded = round(x);
    I y;
    for (int i = 0; i < width; ++i) y.lane[i] = int32_t(rounded.lane[i]);
    return y;
  }
  static I add(I a, I b) {
    for (int i = 0; i < width; ++i) a.lane[i] += b.lane[i];
    return a;
  }
  static int32_t reduce_add(I x) {
    int32_t sum = 0;
    for (int i = 0; i < width; ++i) sum += x.lane[i];
    return sum;
  }
  // 64 numbers from -128 to 127.
  static void store_bytes(int8_t* at, const I (&x)[8]) {
    for (int i = 0; i < 64; ++i) at[i] = int8_t(x[i / width].lane[i % width]);
  }
  // Of a group of a row, to the order of grid_rows.h.
  static void store_wholes(int8_t* at, const I (&high)[4], const I (&low)[4]) {
    for (int i = 0; i < 32; ++i) {
      const int input = i / 4 * 4 + (i % 4 == 1 ? 2 : i % 4 == 2 ? 1 : i % 4);
      at[i / 4 * 8 + i % 4] = int8_t(high[input / width].lane[input % width]);
      at[i / 4 * 8 + 4 + i % 4] = int8_t(low[input / width].lane[input % width]);
    }
  }

  // to[j * stride + i] = from[i][j] for i, j < width, in 4-byte units.
  static void transpose(const char* const* from, int64_t offset, char* to, int64_t stride) {
    for (int i = 0; i < width; ++i) {
      for (int j = 0; j < width; ++j) std::memcpy(to + j * stride + 4 * i, from[i] + offset + 4 * j, 4);
    }
  }
};

}  // namespace
}  // namespace zweave
