// Products with packed weights.
//
// Every output is one chain of multiply-adds over its inputs in order, whatever the tile it is computed in,
// so that a row's result depends on neither the other rows nor the split between threads.
#pragma once

#include "cpu/kernels.h"

namespace zweave {
namespace {

constexpr int kPanelVectors = int(kPanel) / Simd::width;

// Panels computed together so that `rows` rows keep the multipliers busy.
constexpr int panels_together(int rows) {
  const int panels = Simd::busy_vectors / (rows * kPanelVectors);
  return panels > 1 ? panels : 1;
}

template <class T>
void finish(const Matmul<T>& m, int64_t row, int64_t column, Simd::F sum) {
  const int64_t n = m.outputs - column < Simd::width ? m.outputs - column : Simd::width;
  if (n <= 0) return;
  if (m.scale) sum = Simd::mul(sum, Simd::load(m.scale + m.slot[row] * m.scale_stride + column, n));
  if (m.bias) sum = Simd::add(sum, Simd::load(m.bias + column, n));
  const int64_t at = row * m.y_stride + column;
  if (m.y_f32) {
    Simd::store(m.y_f32 + at, sum, n);
  } else {
    Simd::store(m.y + at, sum, n);
  }
}

template <class T, int rows, int panels>
void matmul_tile(const Matmul<T>& m, int64_t row, int64_t panel) {
  constexpr int vectors = panels * kPanelVectors;
  constexpr int64_t step = kPanel * kGroup<T>;
  const int64_t groups = m.inputs / kGroup<T>;
  const int64_t panel_size = divide_up(m.inputs, kGroup<T>) * step;
  const T* w = m.weight + panel * panel_size;
  const T* x = m.x + row * m.x_stride;

  Simd::F sum[rows][vectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 32
    for (int v = 0; v < vectors; ++v) sum[r][v] = Simd::set1(0);
  }
  const auto weights = [&](int v) {
    return Simd::weights(w + (v / kPanelVectors) * panel_size +
                         (v % kPanelVectors) * Simd::width * kGroup<T>);
  };
  for (int64_t k = 0; k < groups; ++k, w += step, x += kGroup<T>) {
    decltype(Simd::weights(w)) loaded[vectors];
#pragma GCC unroll 32
    for (int v = 0; v < vectors; ++v) loaded[v] = weights(v);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const auto value = Simd::broadcast(x + r * m.x_stride);
#pragma GCC unroll 32
      for (int v = 0; v < vectors; ++v) sum[r][v] = Simd::multiply_add(sum[r][v], loaded[v], value);
    }
  }
  if constexpr (kGroup<T> == 2) {
    if (m.inputs % 2) {
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        const auto value = Simd::broadcast_last(x + r * m.x_stride);
#pragma GCC unroll 32
        for (int v = 0; v < vectors; ++v) sum[r][v] = Simd::multiply_add(sum[r][v], weights(v), value);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 32
    for (int v = 0; v < vectors; ++v) finish(m, row + r, panel * kPanel + v * Simd::width, sum[r][v]);
  }
}

template <class T, int rows>
void matmul_rows(const Matmul<T>& m, int64_t row, int64_t panel_begin, int64_t panel_end) {
  constexpr int together = panels_together(rows);
  int64_t panel = panel_begin;
  for (; panel + together <= panel_end; panel += together) matmul_tile<T, rows, together>(m, row, panel);
  for (; panel < panel_end; ++panel) matmul_tile<T, rows, 1>(m, row, panel);
}

// matmul_rows of a row count known only at run time.
template <class T, int rows = Simd::max_rows>
void matmul_block(const Matmul<T>& m, int64_t row, int64_t count, int64_t panel_begin, int64_t panel_end) {
  if (count == rows) return matmul_rows<T, rows>(m, row, panel_begin, panel_end);
  if constexpr (rows > 1) matmul_block<T, rows - 1>(m, row, count, panel_begin, panel_end);
}

template <class T>
void matmul(const Matmul<T>& m, int64_t row_begin, int64_t row_end, int64_t panel_begin, int64_t panel_end) {
  const int64_t blocks = divide_up(row_end - row_begin, Simd::max_rows);
  // A panel stays in the first-level cache while the row blocks pass over it.
  const int64_t step = blocks > 1 ? 1 : panel_end - panel_begin;
  for (int64_t panel = panel_begin; panel < panel_end; panel += step) {
    int64_t row = row_begin;
    for (int64_t block = blocks; block > 0; --block) {
      const int64_t count = divide_up(row_end - row, block);
      matmul_block<T>(m, row, count, panel, panel + step);
      row += count;
    }
  }
}

// One panel from `rows` pointers; what lies past `present` rows or past `inputs` becomes zero.
template <class T>
void pack_panel(const T* const* rows, int64_t present, int64_t inputs, T* packed) {
  constexpr int64_t group = kGroup<T>;
  constexpr int64_t per_step = Simd::width * group;
  const int64_t whole = inputs / per_step * per_step;
  char* out = reinterpret_cast<char*>(packed);
  for (int64_t first = 0; first < kPanel; first += Simd::width) {
    if (first + Simd::width > present) {
      for (int64_t row = first; row < first + Simd::width; ++row) {
        for (int64_t k = 0; k < whole; ++k) {
          packed[(k / group * kPanel + row) * group + k % group] = row < present ? rows[row][k] : T{};
        }
      }
      continue;
    }
    const char* from[Simd::width];
    for (int i = 0; i < Simd::width; ++i) from[i] = reinterpret_cast<const char*>(rows[first + i]);
    for (int64_t k = 0; k < whole; k += per_step) {
      Simd::transpose(from, k * int64_t(sizeof(T)), out + (k / group * kPanel + first) * 4, kPanel * 4);
    }
  }
  for (int64_t k = whole; k < divide_up(inputs, group) * group; ++k) {
    for (int64_t row = 0; row < kPanel; ++row) {
      packed[(k / group * kPanel + row) * group + k % group] =
          row < present && k < inputs ? rows[row][k] : T{};
    }
  }
}

template <class T>
void pack(const T* weight, int64_t stride, int64_t outputs, int64_t inputs, T* packed, int64_t begin,
          int64_t end) {
  const int64_t panel_size = divide_up(inputs, kGroup<T>) * kPanel * kGroup<T>;
  for (int64_t panel = begin; panel < end; ++panel) {
    const T* rows[kPanel];
    const int64_t left = outputs - panel * kPanel;
    const int64_t present = left < kPanel ? left : kPanel;
    for (int64_t i = 0; i < present; ++i) rows[i] = weight + (panel * kPanel + i) * stride;
    pack_panel(rows, present, inputs, packed + panel * panel_size);
  }
}

}  // namespace
}  // namespace zweave
