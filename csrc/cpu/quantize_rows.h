// From a row of activations to integers, block by block.
#pragma once

#include <limits>

#include "cpu/integer_rows.h"
#include "cpu/vectors.h"

namespace zweave {
namespace {

// The inverse of a smaller one would not be finite; nothing that small adds to a sum.
constexpr float kSmallestPeak = 1e-30f;

// x [inputs], at most a block, to whole numbers from -127 to 127 and the scale and sum of them. A block that
// holds NaN or infinity gets NaN for its scale.
template <class T>
void quantize_block(const T* x, int64_t inputs, int8_t* values, float* scale, int32_t* sum) {
  constexpr int vectors = int(kBlock) / Simd::width;
  Simd::F value[vectors];
  Simd::F largest = Simd::set1(0), zeros = Simd::set1(0);
#pragma GCC unroll 8
  for (int i = 0; i < vectors; ++i) {
    const int64_t left = inputs - i * Simd::width;
    value[i] = left <= 0 ? Simd::set1(0) : load(x + i * Simd::width, left < Simd::width ? left : Simd::width);
    largest = Simd::max(largest, Simd::max(value[i], Simd::sub(Simd::set1(0), value[i])));
    // Zero times anything but a finite number is NaN.
    zeros = Simd::fma(value[i], Simd::set1(0), zeros);
  }
  const float peak = Simd::reduce_max(largest), zero = Simd::reduce_add(zeros);
  const bool usable = zero == 0 && peak >= kSmallestPeak;
  const Simd::F inverse = Simd::set1(usable ? 127.0f / peak : 0.0f);
  Simd::F total = Simd::set1(0);
#pragma GCC unroll 8
  for (int i = 0; i < vectors; ++i) {
    const Simd::F whole = usable ? Simd::round(Simd::mul(value[i], inverse)) : Simd::set1(0);
    Simd::store_bytes(values + i * Simd::width, whole);
    total = Simd::add(total, whole);
  }
  *scale = usable ? peak / 127.0f : zero == 0 ? 0.0f : std::numeric_limits<float>::quiet_NaN();
  *sum = int32_t(Simd::reduce_add(total));
}

// Blocks [begin, end) of all rows of a term, counted through row after row.
template <class T>
void quantize_rows(const Term<T>& term, int64_t row_begin, int64_t begin, int64_t end) {
  const IntegerRows rows(term.integers, term.inputs);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t row = row_begin + item / rows.blocks, block = item % rows.blocks, first = block * kBlock;
    const int64_t left = term.inputs - first;
    quantize_block(term.x + row * term.x_stride + first, left < kBlock ? left : kBlock,
                   rows.values(row) + first, rows.scales(row) + block, rows.sums(row) + block);
  }
}

}  // namespace
}  // namespace zweave
