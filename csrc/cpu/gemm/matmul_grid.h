// The term of a product whose weights lie on a grid, as those of models do that arrive quantised:
//
//     w = d * code    or    w = d * code + m        y += sum over groups of d * (sum of code * x) + m * (sum
//     of x)
//
// Codes are exact in float32, which multiplies x as it is; bf16's x is multiplied as whole numbers of two
// bytes (grid_wholes.h). In this order, one operation at a time, in every tile.
#pragma once

#include <type_traits>

#include "cpu/gemm/grid_layout.h"
#include "cpu/gemm/grid_numbers.h"
#include "cpu/gemm/grid_wholes.h"
#include "cpu/gemm/matmul_tile.h"
#include "cpu/gemm/prepared_rows.h"

namespace zweave {
namespace {

// Groups that row blocks pass over together: their weights stay in the second-level cache.
constexpr int64_t kGridSlice = 64;

// part[r][.] += the codes of a line times their inputs; `x` stands at the first row's.
template <int rows, int panels, int bits, int origin>
inline __attribute__((always_inline)) void add_line(const char* line, int64_t panel_bytes, const float* x,
                                                    int64_t x_stride, Sums<rows, panels>& part) {
  constexpr int vectors = panels * kPanelVectors;
#pragma GCC unroll 4
  for (int pair = 0; pair < 16 / bits; ++pair) {
    Simd::Two weight[vectors];
#pragma GCC unroll 32
    for (int v = 0; v < vectors; ++v) {
      weight[v] = Simd::codes<bits, origin>(
          line + (v / kPanelVectors) * panel_bytes + (v % kPanelVectors) * Simd::width * 4, pair, x);
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const float* at = x + r * x_stride + 2 * pair;
      const Simd::F even = Simd::broadcast(at), odd = Simd::broadcast(at + 1);
#pragma GCC unroll 32
      for (int v = 0; v < vectors; ++v) {
        part[r][v] = Simd::fma(weight[v].odd, odd, Simd::fma(weight[v].even, even, part[r][v]));
      }
    }
  }
}

// Adds groups [begin, end) of the term to `sums` of a tile.
template <int rows, int panels, Storage storage>
void grid_tile(const Term<float>& term, int64_t row, int64_t panel, int64_t begin, int64_t end, Fetch fetch,
               float* sums) {
  using Layout = GridLayout<storage>;
  constexpr int64_t lines = Layout::group_bytes / kLine, line_inputs = kGroup / lines;
  const int64_t bytes = term.weights.panel_bytes;
  const char* weights = term.weights.panels + panel * bytes;
  Ahead ahead = fetch.ahead(weights + Layout::codes(begin), fetch.next,
                            (Layout::codes(end) - Layout::codes(begin)) / kLine, bytes);
  const PreparedRows prepared(term.prepared, term.inputs);
  for (int64_t group = begin; group < end; ++group) {
    Sums<rows, panels> part;
    clear<rows, panels>(part);
    const char* line = weights + Layout::codes(group);
    const float* x = term.x + row * term.x_stride + group * kGroup;
    for (int64_t i = 0; i < lines; ++i, line += kLine, x += line_inputs) {
      prefetch_line<panels>(ahead);
      add_line<rows, panels, Layout::bits, Layout::origin>(line, bytes, x, term.x_stride, part);
    }
    prefetch_line<panels>(ahead);
    const GridNumbers<storage, panels> numbers(weights, bytes, group);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const float x_sum = prepared.groups(row + r)[group].sum;
#pragma GCC unroll 32
      for (int v = 0; v < panels * kPanelVectors; ++v) {
        float* at = sums + r * kTileOutputs + v * Simd::width;
        Simd::store(at, numbers.add(part[r][v], x_sum, v, Simd::load(at)));
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
  constexpr int most = std::is_same_v<T, bf16> ? Simd::grid_rows : Simd::max_rows<T>;
  const int64_t count = divide_up(row_end - row_begin, most);
  const int64_t groups = term.inputs / kGroup;
  const char* here = term.weights.panels + panel * term.weights.panel_bytes;
  for (int64_t begin = 0; begin < groups; begin += kGridSlice) {
    const int64_t end = begin + kGridSlice < groups ? begin + kGridSlice : groups;
    const char* then = end < groups ? here + Layout::codes(end) : next;
    int64_t row = row_begin;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t rows = divide_up(row_end - row, count - i);
      const Fetch fetch{then, i, count};
      with_rows<most>(rows, [&]<int known>() {
        grid_tile<known, panels, storage>(term, row, panel, begin, end, fetch,
                                          sums + (row - row_begin) * kTileOutputs);
      });
      row += rows;
    }
  }
}

}  // namespace
}  // namespace zweave
