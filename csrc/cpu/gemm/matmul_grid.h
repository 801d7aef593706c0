// The term of a product whose weights lie on a grid, as those of models do that arrive quantised:
//
//     w = d * code    or    w = d * code + m        y += sum over groups of d * (sum of code * x) + m * (sum
//     of x)
//
// Codes are exact in either dtype of the activations, so that nothing is rounded but sums; in this order, one
// operation at a time, in every tile.
#pragma once

#include "cpu/gemm/grid_layout.h"
#include "cpu/gemm/integer_rows.h"
#include "cpu/gemm/matmul_tile.h"

namespace zweave {
namespace {

// Groups that row blocks pass over together: their weights stay in the second-level cache.
constexpr int64_t kGridSlice = 64;

// The numbers of a group's outputs, as halves or floats.
template <bool halves, int panels>
inline __attribute__((always_inline)) void load_numbers(const char* at, int64_t panel_bytes,
                                                        Simd::F (&to)[panels * kPanelVectors]) {
#pragma GCC unroll 32
  for (int v = 0; v < panels * kPanelVectors; ++v) {
    const char* from = at + (v / kPanelVectors) * panel_bytes;
    const int64_t first = (v % kPanelVectors) * Simd::width;
    if constexpr (halves) {
      to[v] = Simd::load_halves(from + first * 2);
    } else {
      to[v] = Simd::load(reinterpret_cast<const float*>(from) + first);
    }
  }
}

// part[r][.] += the codes of a line times their inputs; `x` stands at the first row's.
template <class T, int rows, int panels, int bits, int origin>
inline __attribute__((always_inline)) void add_line(const char* line, int64_t panel_bytes, const T* x,
                                                    int64_t x_stride, Sums<rows, panels>& part) {
  constexpr int vectors = panels * kPanelVectors;
#pragma GCC unroll 4
  for (int pair = 0; pair < 16 / bits; ++pair) {
    decltype(Simd::codes<bits, origin>(line, 0, x)) weight[vectors];
#pragma GCC unroll 32
    for (int v = 0; v < vectors; ++v) {
      weight[v] = Simd::codes<bits, origin>(
          line + (v / kPanelVectors) * panel_bytes + (v % kPanelVectors) * Simd::width * 4, pair, x);
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const T* at = x + r * x_stride + 2 * pair;
      if constexpr (sizeof(T) == 2) {
        const auto value = Simd::broadcast(at);
#pragma GCC unroll 32
        for (int v = 0; v < vectors; ++v) part[r][v] = Simd::multiply_add(part[r][v], weight[v], value);
      } else {
        const Simd::F even = Simd::broadcast(at), odd = Simd::broadcast(at + 1);
#pragma GCC unroll 32
        for (int v = 0; v < vectors; ++v) {
          part[r][v] = Simd::fma(weight[v].odd, odd, Simd::fma(weight[v].even, even, part[r][v]));
        }
      }
    }
  }
}

// Adds groups [begin, end) of the term to `sums` of a tile.
template <class T, int rows, int panels, Storage storage>
void grid_tile(const Term<T>& term, int64_t row, int64_t panel, int64_t begin, int64_t end, Fetch fetch,
               float* sums) {
  using Layout = GridLayout<storage>;
  constexpr int vectors = panels * kPanelVectors;
  constexpr int64_t lines = Layout::group_bytes / kLine, line_inputs = kGroup / lines;
  const int64_t bytes = term.weights.panel_bytes;
  const char* weights = term.weights.panels + panel * bytes;
  Ahead ahead = fetch.ahead(weights + Layout::codes(begin), fetch.next,
                            (Layout::codes(end) - Layout::codes(begin)) / kLine, bytes);
  const IntegerRows prepared(term.integers, term.inputs);
  for (int64_t group = begin; group < end; ++group) {
    Sums<rows, panels> part;
    clear<rows, panels>(part);
    const char* line = weights + Layout::codes(group);
    const T* x = term.x + row * term.x_stride + group * kGroup;
    for (int64_t i = 0; i < lines; ++i, line += kLine, x += line_inputs, ahead.at += ahead.step) {
      prefetch(ahead.at);
      if constexpr (panels > 1) prefetch(ahead.at + ahead.apart);
      add_line<T, rows, panels, Layout::bits, Layout::origin>(line, bytes, x, term.x_stride, part);
    }
    prefetch(ahead.at);
    if constexpr (panels > 1) prefetch(ahead.at + ahead.apart);
    ahead.at += ahead.step;
    Simd::F scale[vectors], least[vectors];
    load_numbers<Layout::has_halves, panels>(weights + Layout::scales(group), bytes, scale);
    if constexpr (Layout::has_minimum) {
      load_numbers<Layout::has_halves, panels>(weights + Layout::minima(group), bytes, least);
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      float* to = sums + r * kTileOutputs;
      Simd::F total = Simd::set1(0);
      if constexpr (Layout::has_minimum) total = Simd::set1(prepared.group_sums(row + r)[group]);
#pragma GCC unroll 32
      for (int v = 0; v < vectors; ++v) {
        Simd::F sum = Simd::fma(scale[v], part[r][v], Simd::load(to + v * Simd::width));
        if constexpr (Layout::has_minimum) sum = Simd::fma(least[v], total, sum);
        Simd::store(to + v * Simd::width, sum);
      }
    }
  }
}

// The term under the panels of one tile, added to `sums` [row_end - row_begin, kTileOutputs]. `next` is where
// the panels of the tile after this one begin.
template <class T, int panels, Storage storage>
void add_grid(const Term<T>& term, int64_t row_begin, int64_t row_end, int64_t panel, const char* next,
              float* sums) {
  using Layout = GridLayout<storage>;
  const int64_t count = divide_up(row_end - row_begin, Simd::max_rows<T>);
  const int64_t groups = term.inputs / kGroup;
  const char* here = term.weights.panels + panel * term.weights.panel_bytes;
  for (int64_t begin = 0; begin < groups; begin += kGridSlice) {
    const int64_t end = begin + kGridSlice < groups ? begin + kGridSlice : groups;
    const char* then = end < groups ? here + Layout::codes(end) : next;
    int64_t row = row_begin;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t rows = divide_up(row_end - row, count - i);
      const Fetch fetch{then, i, count};
      with_rows<Simd::max_rows<T>>(rows, [&]<int known>() {
        grid_tile<T, known, panels, storage>(term, row, panel, begin, end, fetch,
                                             sums + (row - row_begin) * kTileOutputs);
      });
      row += rows;
    }
  }
}

// The sums of the groups of rows, which minima are multiplied by.
template <class T>
void sum_groups(const Term<T>& term, int64_t row_begin, int64_t row_end) {
  const IntegerRows rows(term.integers, term.inputs);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const T* x = term.x + row * term.x_stride;
    float* to = rows.group_sums(row);
    for (int64_t group = 0; group < term.inputs / kGroup; ++group, x += kGroup) {
      Simd::F sum = Simd::load(x);
      for (int i = Simd::width; i < kGroup; i += Simd::width) sum = Simd::add(sum, Simd::load(x + i));
      to[group] = Simd::reduce_add(sum);
    }
  }
}

}  // namespace
}  // namespace zweave
