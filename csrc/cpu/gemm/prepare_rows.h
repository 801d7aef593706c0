// Prepares rows of activations for products; integer weights multiply them quantised, block by block.
#pragma once

#include <limits>
#include <type_traits>

#include "cpu/gemm/grid_rows.h"
#include "cpu/gemm/prepared_rows.h"
#include "cpu/simd/vectors.h"

namespace zweave {
namespace {

constexpr int kBlockVectors = int(kBlock) / Simd::width;

// The largest magnitude of a block, or what is not finite if something in it is not.
template <class T, class Vectors = Simd>
float peak_of(const T* x, int64_t inputs, const Simd::F (&value)[kBlockVectors]) {
  if constexpr (requires { Vectors::peak(x); }) {
    if (inputs == kBlock) return Vectors::peak(x);
  }
  Simd::F largest = Simd::set1(0), zeros = Simd::set1(0);
#pragma GCC unroll 8
  for (int i = 0; i < kBlockVectors; ++i) {
    largest = Simd::max(largest, Simd::max(value[i], Simd::sub(Simd::set1(0), value[i])));
    // Zero times anything but a finite number is NaN.
    zeros = Simd::fma(value[i], Simd::set1(0), zeros);
  }
  return Simd::reduce_max(largest) + Simd::reduce_add(zeros);
}

// x [inputs], at most a block, to whole numbers from -127 to 127 and the scale and sum of them. A block that
// holds NaN or infinity gets NaN for its scale.
template <class T>
void quantize_block(const T* x, int64_t inputs, int8_t* values, float* scale, int32_t* sum) {
  Simd::F value[kBlockVectors];
  if (inputs == kBlock) {
#pragma GCC unroll 8
    for (int i = 0; i < kBlockVectors; ++i) value[i] = Simd::load(x + i * Simd::width);
  } else {
    for (int i = 0; i < kBlockVectors; ++i) {
      const int64_t left = inputs - i * Simd::width;
      value[i] =
          left <= 0 ? Simd::set1(0) : load(x + i * Simd::width, left < Simd::width ? left : Simd::width);
    }
  }
  const float peak = peak_of(x, inputs, value);
  if (!(peak >= kSmallestPeak && peak < std::numeric_limits<float>::infinity())) {
    for (int64_t i = 0; i < kBlock; ++i) values[i] = 0;
    *scale = peak < kSmallestPeak ? 0.0f : std::numeric_limits<float>::quiet_NaN();
    *sum = 0;
    return;
  }
  const Simd::F inverse = Simd::set1(127.0f / peak);
  Simd::I whole[kBlockVectors], total = Simd::whole(0);
#pragma GCC unroll 8
  for (int i = 0; i < kBlockVectors; ++i) {
    whole[i] = Simd::to_whole(Simd::mul(value[i], inverse));
    total = Simd::add(total, whole[i]);
  }
  Simd::store_bytes(values, whole);
  *scale = peak / 127.0f;
  *sum = Simd::reduce_add(total);
}

template <class T>
void quantize_rows(const Term<T>& term, int64_t row_begin, int64_t row_end) {
  const PreparedRows rows(term.prepared, term.inputs);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const T* x = term.x + row * term.x_stride;
    for (int64_t block = 0; block < rows.blocks; ++block) {
      const int64_t first = block * kBlock, left = term.inputs - first;
      quantize_block(x + first, left < kBlock ? left : kBlock, rows.values(row) + first,
                     rows.scales(row) + block, rows.sums(row) + block);
    }
  }
}

template <class T>
void prepare_rows(const Term<T>& term, int64_t row_begin, int64_t row_end) {
  if (is_integer(term.weights.storage)) return quantize_rows(term, row_begin, row_end);
  if constexpr (std::is_same_v<T, bf16>) return split_rows(term, row_begin, row_end);
  sum_groups(term, row_begin, row_end);
}

}  // namespace
}  // namespace zweave
