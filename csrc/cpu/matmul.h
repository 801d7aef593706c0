// Products with packed weights.
//
// Every output is one chain of multiply-adds over its inputs in order, whatever the tile it is computed in,
// so that a row's result depends on neither the other rows nor the split between threads.
#pragma once

#include "cpu/kernels.h"
#include "cpu/vectors.h"

namespace zweave {
namespace {

constexpr int kPanelVectors = int(kPanel) / Simd::width;
constexpr int64_t kTileOutputs = kTilePanels * kPanel;
// Groups of inputs that row blocks pass over together. A tile's weights for so many fill an eighth of the
// second-level cache, and so do those of the next tile, which are fetched meanwhile.
constexpr int64_t kSlice = 1024;
constexpr int64_t kLine = 64;

template <class T>
int64_t groups_of(const Term<T>& term) {
  return divide_up(term.inputs, kGroup<T>);
}

template <class T>
int64_t groups_of(const Matmul<T>& m) {
  int64_t groups = 0;
  for (int64_t i = 0; i < m.num_terms; ++i) groups += groups_of(m.terms[i]);
  return groups;
}

// Where a tile's successor will read, a line a group for each panel; a line that is there already costs
// little.
struct Ahead {
  const char* panel[kTilePanels];
};

inline void prefetch(const char* at) { __builtin_prefetch(at, 0, 2); }

// Turns the sums [count, kTileOutputs] of rows from `row` on into outputs.
template <class T, int panels>
void finish(const Matmul<T>& m, int64_t row, int64_t count, int64_t panel, const float* sums) {
  const int64_t first = panel * kPanel;
  const int64_t n = m.outputs - first < panels * kPanel ? m.outputs - first : panels * kPanel;
  for (int64_t r = 0; r < count; ++r, ++row, sums += kTileOutputs) {
    const float* scale = m.scale ? m.scale + m.slot[row] * m.scale_stride + first : nullptr;
    const int64_t at = row * m.y_stride + first;
    for_vectors(n, [&](int64_t i, int64_t part) {
      Simd::F sum = Simd::load(sums + i);
      if (scale) sum = Simd::mul(sum, load(scale + i, part));
      if (m.bias) sum = Simd::add(sum, load(m.bias + first + i, part));
      if (m.y_f32) {
        store(m.y_f32 + at + i, sum, part);
      } else {
        store(m.y + at + i, sum, part);
      }
    });
  }
}

template <int rows, int panels>
using Sums = Simd::F[rows][panels * kPanelVectors];

// sum[r][.] += x[row + r] W^T over groups [begin, end) of one term.
template <class T, int rows, int panels>
inline __attribute__((always_inline)) void accumulate(const Term<T>& term, int64_t row, int64_t panel,
                                                      int64_t begin, int64_t end, Ahead& ahead,
                                                      Sums<rows, panels>& sum) {
  constexpr int vectors = panels * kPanelVectors;
  constexpr int64_t step = kPanel * kGroup<T>;
  const int64_t whole = term.inputs / kGroup<T>, last = end < whole ? end : whole;
  const T* w = term.weight + panel * term.panel_stride + begin * step;
  const T* x = term.x + row * term.x_stride + begin * kGroup<T>;
  const auto weights = [&](int v) {
    return Simd::weights(w + (v / kPanelVectors) * term.panel_stride +
                         (v % kPanelVectors) * Simd::width * kGroup<T>);
  };
  const char* next = ahead.panel[0];
  const int64_t apart = ahead.panel[kTilePanels - 1] - next;
  for (int64_t k = begin; k < last; ++k, w += step, x += kGroup<T>, next += kLine) {
    prefetch(next);
    if constexpr (panels > 1) prefetch(next + apart);
    decltype(Simd::weights(w)) loaded[vectors];
#pragma GCC unroll 32
    for (int v = 0; v < vectors; ++v) loaded[v] = weights(v);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const auto value = Simd::broadcast(x + r * term.x_stride);
#pragma GCC unroll 32
      for (int v = 0; v < vectors; ++v) sum[r][v] = Simd::multiply_add(sum[r][v], loaded[v], value);
    }
  }
  if constexpr (kGroup<T> == 2) {
    if (last < end) {
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        const auto value = Simd::broadcast_last(x + r * term.x_stride);
#pragma GCC unroll 32
        for (int v = 0; v < vectors; ++v) sum[r][v] = Simd::multiply_add(sum[r][v], weights(v), value);
      }
    }
  }
  for (const char*& at : ahead.panel) at += (end - begin) * kLine;
}

// One tile over groups [begin, end) of all terms, added to `sums` [rows, kTileOutputs] unless it begins at 0.
template <class T, int rows, int panels>
void matmul_tile(const Matmul<T>& m, int64_t row, int64_t panel, int64_t begin, int64_t end, Ahead ahead,
                 float* sums) {
  constexpr int vectors = panels * kPanelVectors;
  Sums<rows, panels> sum;
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 32
    for (int v = 0; v < vectors; ++v) {
      sum[r][v] = begin ? Simd::load(sums + r * kTileOutputs + v * Simd::width) : Simd::set1(0);
    }
  }
  int64_t first = 0;
  for (int64_t i = 0; i < m.num_terms; ++i) {
    const int64_t groups = groups_of(m.terms[i]);
    const int64_t from = begin > first ? begin - first : 0;
    const int64_t to = end - first < groups ? end - first : groups;
    if (from < to) accumulate<T, rows, panels>(m.terms[i], row, panel, from, to, ahead, sum);
    first += groups;
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 32
    for (int v = 0; v < vectors; ++v) Simd::store(sums + r * kTileOutputs + v * Simd::width, sum[r][v]);
  }
}

// matmul_tile of a row count known only at run time.
template <class T, int panels, int rows = Simd::max_rows>
void matmul_block(const Matmul<T>& m, int64_t row, int64_t count, int64_t panel, int64_t begin, int64_t end,
                  Ahead ahead, float* sums) {
  if (count == rows) return matmul_tile<T, rows, panels>(m, row, panel, begin, end, ahead, sums);
  if constexpr (rows > 1) {
    matmul_block<T, panels, rows - 1>(m, row, count, panel, begin, end, ahead, sums);
  }
}

// All rows under the panels of one tile. The row blocks pass over a slice of the weights one after the other;
// while they do, the first of them fetch the weights that come next.
template <class T, int panels>
void matmul_panels(const Matmul<T>& m, int64_t row_begin, int64_t row_end, int64_t panel, const char* next) {
  alignas(64) float sums[kRows * kTileOutputs];
  const int64_t blocks = divide_up(row_end - row_begin, Simd::max_rows);
  const int64_t groups = groups_of(m);
  const int64_t stride = m.terms[0].panel_stride * sizeof(T);
  const char* weight = reinterpret_cast<const char*>(m.terms[0].weight + panel * m.terms[0].panel_stride);
  int64_t begin = 0;
  do {
    const int64_t end = begin + kSlice < groups ? begin + kSlice : groups;
    const char* here = weight + begin * kLine;
    const char* then = end < groups ? here + kSlice * kLine : next;
    int64_t row = row_begin;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t count = divide_up(row_end - row, blocks - block);
      // One block fetches all that comes next, of several the first two half of it each.
      Ahead ahead = {{then, then + stride}};
      if (blocks > 1 && block != 0) ahead.panel[0] = here;
      if (blocks > 1 && block != 1) ahead.panel[1] = here + stride;
      matmul_block<T, panels>(m, row, count, panel, begin, end, ahead,
                              sums + (row - row_begin) * kTileOutputs);
      row += count;
    }
    begin = end;
  } while (begin < groups);
  finish<T, panels>(m, row_begin, row_end - row_begin, panel, sums);
}

template <class T>
void matmul(const Matmul<T>& m, int64_t row_begin, int64_t row_end, int64_t panel_begin, int64_t panel_end) {
  const int64_t stride = m.terms[0].panel_stride;
  for (int64_t row = row_begin; row < row_end; row += kRows) {
    const int64_t end = row + kRows < row_end ? row + kRows : row_end;
    for (int64_t panel = panel_begin; panel < panel_end; panel += kTilePanels) {
      const int64_t after = panel + kTilePanels;
      const void* next = after < panel_end || !m.next ? m.terms[0].weight + after * stride : m.next;
      const char* then = static_cast<const char*>(next);
      if (after <= panel_end) {
        matmul_panels<T, kTilePanels>(m, row, end, panel, then);
      } else {
        matmul_panels<T, 1>(m, row, end, panel, then);
      }
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
