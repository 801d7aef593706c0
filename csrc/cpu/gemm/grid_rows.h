// Rows of activations as whole numbers of two bytes: what products with weights on a grid multiply.
//
//     x = scale * (128 high + low)      high from -127 to 127, low from -64 to 64
//
// 32,639 steps between the largest magnitude of a group and its negative: finer than bf16, which x comes in,
// for all but values that are 2^-6 of the group's largest or less. A sum over the high bytes becomes one over
// the whole numbers by a shift. Both bytes of four inputs lie side by side, the four in the order 0, 2, 1, 3,
// in which a line has their codes.
#pragma once

#include <cstring>
#include <limits>

#include "cpu/gemm/prepared_rows.h"
#include "cpu/simd/kernels.h"

namespace zweave {
namespace {

constexpr int kGroupVectors = int(kGroup) / Simd::width;
constexpr int kRadixBits = 7;
constexpr float kRadix = 1 << kRadixBits, kLargestWhole = 127 * kRadix + kRadix / 2 - 1;

// The sums of the groups of rows, which minima are multiplied by.
template <class T>
void sum_groups(const Term<T>& term, int64_t row_begin, int64_t row_end) {
  const PreparedRows rows(term.prepared, term.inputs);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const T* x = term.x + row * term.x_stride;
    for (int64_t group = 0; group < term.inputs / kGroup; ++group, x += kGroup) {
      Simd::F sum = Simd::load(x);
      for (int i = Simd::width; i < kGroup; i += Simd::width) sum = Simd::add(sum, Simd::load(x + i));
      rows.groups(row)[group].sum = Simd::reduce_add(sum);
    }
  }
}

// A group, to its bytes and numbers. One that holds NaN or infinity gets NaN for its scale.
template <class T>
inline void split_group(const T* x, RowGroup& to) {
  Simd::F value[kGroupVectors], largest = Simd::set1(0), zeros = Simd::set1(0);
#pragma GCC unroll 4
  for (int i = 0; i < kGroupVectors; ++i) {
    value[i] = Simd::load(x + i * Simd::width);
    largest = Simd::max(largest, Simd::max(value[i], Simd::sub(Simd::set1(0), value[i])));
    // Zero times anything but a finite number is NaN.
    zeros = Simd::fma(value[i], Simd::set1(0), zeros);
  }
  const float peak = Simd::reduce_max(largest) + Simd::reduce_add(zeros);
  const bool small = peak < kSmallestPeak;
  if (small || !(peak < std::numeric_limits<float>::infinity())) {
    std::memset(to.wholes, 0, 2 * kGroup);
    to.scale = to.sum = small ? 0.0f : std::numeric_limits<float>::quiet_NaN();
    return;
  }
  const Simd::F inverse = Simd::set1(kLargestWhole / peak);
  Simd::I high[kGroupVectors], low[kGroupVectors];
  Simd::F sum = Simd::set1(0);
#pragma GCC unroll 4
  for (int i = 0; i < kGroupVectors; ++i) {
    const Simd::F whole = Simd::round(Simd::mul(value[i], inverse));
    const Simd::F upper = Simd::round(Simd::mul(whole, Simd::set1(1 / kRadix)));
    high[i] = Simd::to_whole(upper);
    low[i] = Simd::to_whole(Simd::fma(upper, Simd::set1(-kRadix), whole));
    sum = Simd::add(sum, whole);
  }
  Simd::store_wholes(to.wholes, high, low);
  to.scale = peak / kLargestWhole;
  to.sum = to.scale * Simd::reduce_add(sum);
}

template <class T>
void split_rows(const Term<T>& term, int64_t row_begin, int64_t row_end) {
  const PreparedRows rows(term.prepared, term.inputs);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const T* x = term.x + row * term.x_stride;
    for (int64_t group = 0; group < term.inputs / kGroup; ++group, x += kGroup) {
      split_group(x, rows.groups(row)[group]);
    }
  }
}

}  // namespace
}  // namespace zweave
