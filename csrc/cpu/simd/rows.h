// Ops that treat one row at a time: norm, rope, SiLU gate, mix. Sums run over fixed columns in a fixed order.
#pragma once

#include "cpu/simd/exp.h"
#include "cpu/simd/kernels.h"
#include "cpu/simd/vectors.h"

namespace zweave {
namespace {

// One row of a norm; X is T, or float for a residual.
template <class T, class X>
void norm_row(const Norm<T>& a, const X* x, T* y) {
  Simd::F squares = Simd::set1(0);
  for_vectors(a.width, [&](int64_t i, int64_t n) {
    const Simd::F value = load(x + i, n);
    squares = Simd::fma(value, value, squares);
  });
  const float mean = Simd::reduce_add(squares) / float(a.width);
  const Simd::F inverse = Simd::set1(1.0f / __builtin_sqrtf(mean + a.eps));
  for_vectors(a.width, [&](int64_t i, int64_t n) {
    const Simd::F weight = a.weight ? load(a.weight + i, n) : load(a.weight_f32 + i, n);
    store(y + i, Simd::mul(Simd::mul(load(x + i, n), inverse), weight), n);
  });
}

template <class T>
void norm(const Norm<T>& a, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const T* x = a.x + row * a.x_stride;
    T* y = a.y + row * a.y_stride;
    if (a.residual) {
      float* residual = a.residual + row * a.residual_stride;
      for_vectors(a.width, [&](int64_t i, int64_t n) {
        store(residual + i, Simd::add(load(residual + i, n), load(x + i, n)), n);
      });
      norm_row(a, residual, y);
    } else {
      norm_row(a, x, y);
    }
  }
}

template <class T>
void rope(const Rope<T>& a, int64_t row_begin, int64_t row_end) {
  const int64_t half = a.head_size / 2;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const float* cos = a.cos + a.position[row] * half;
    const float* sin = a.sin + a.position[row] * half;
    for (int64_t head = 0; head < a.heads; ++head) {
      T* low = a.x + row * a.x_stride + head * a.head_size;
      T* high = low + half;
      for_vectors(half, [&](int64_t i, int64_t n) {
        const Simd::F c = load(cos + i, n), s = load(sin + i, n);
        const Simd::F l = load(low + i, n), h = load(high + i, n);
        store(low + i, Simd::sub(Simd::mul(l, c), Simd::mul(h, s)), n);
        store(high + i, Simd::add(Simd::mul(h, c), Simd::mul(l, s)), n);
      });
    }
  }
}

template <class T>
void silu_mul(const SiluMul<T>& a, int64_t row_begin, int64_t row_end) {
  const Simd::F one = Simd::set1(1), zero = Simd::set1(0);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const T* gate = a.gate + row * a.gate_stride;
    const T* up = a.up + row * a.up_stride;
    T* y = a.y + row * a.y_stride;
    for_vectors(a.width, [&](int64_t i, int64_t n) {
      const Simd::F g = load(gate + i, n);
      const Simd::F silu = Simd::div(g, Simd::add(one, exp(Simd::sub(zero, g))));
      store(y + i, Simd::mul(silu, load(up + i, n)), n);
    });
  }
}

// Some rows of a mix over some columns, which share the loads of the table.
template <int rows, int vectors>
void mix_tile(const Mix& a, int64_t row, int64_t column, int64_t n) {
  Simd::F sum[rows][vectors];
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < vectors; ++v) sum[r][v] = Simd::set1(0);
  }
  for (int64_t e = 0; e < a.experts; ++e) {
    const float* from = a.table + e * a.table_stride + column;
    Simd::F value[vectors];
    for (int v = 0; v < vectors; ++v) value[v] = load(from + v * Simd::width, n);
    for (int r = 0; r < rows; ++r) {
      const Simd::F alpha = Simd::set1(a.alpha[(row + r) * a.alpha_stride + e]);
      for (int v = 0; v < vectors; ++v) sum[r][v] = Simd::fma(alpha, value[v], sum[r][v]);
    }
  }
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < vectors; ++v) {
      store(a.y + (row + r) * a.width + column + v * Simd::width, sum[r][v], n);
    }
  }
}

template <int rows>
void mix_rows(const Mix& a, int64_t row, int64_t begin, int64_t end) {
  constexpr int vectors = Simd::mix_vectors;
  int64_t column = begin;
  for (; column + vectors * Simd::width <= end; column += vectors * Simd::width) {
    mix_tile<rows, vectors>(a, row, column, Simd::width);
  }
  for (; column < end; column += Simd::width) {
    const int64_t left = end - column;
    mix_tile<rows, 1>(a, row, column, left < Simd::width ? left : Simd::width);
  }
}

inline void mix(const Mix& a, int64_t rows, int64_t begin, int64_t end) {
  int64_t row = 0;
  for (; row + Simd::mix_rows <= rows; row += Simd::mix_rows) mix_rows<Simd::mix_rows>(a, row, begin, end);
  for (; row < rows; ++row) mix_rows<1>(a, row, begin, end);
}

inline void greedy(const Greedy& a, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const float* x = a.logits + row * a.stride;
    float best = x[0];
    // Zero times anything but a finite number is NaN. Four chains: one would wait for itself.
    Simd::F largest[4], zeros[4];
    for (int i = 0; i < 4; ++i) largest[i] = Simd::set1(x[0]), zeros[i] = Simd::set1(0);
    int64_t column = 0;
    for (; column + 4 * Simd::width <= a.width; column += 4 * Simd::width) {
      for (int i = 0; i < 4; ++i) {
        const Simd::F value = Simd::load(x + column + i * Simd::width);
        largest[i] = Simd::max(largest[i], value);
        zeros[i] = Simd::fma(value, Simd::set1(0), zeros[i]);
      }
    }
    float zero = 0;
    for (int i = 0; i < 4; ++i) {
      const float lane = Simd::reduce_max(largest[i]);
      best = lane > best ? lane : best;
      zero += Simd::reduce_add(zeros[i]);
    }
    for (; column < a.width; ++column) {
      best = x[column] > best ? x[column] : best;
      zero += x[column] * 0;
    }
    a.finite[row] = zero == 0;
    int64_t id = 0;
    if (a.finite[row]) {
      while (x[id] != best) ++id;
    }
    a.id[row] = id;
  }
}

}  // namespace
}  // namespace zweave
