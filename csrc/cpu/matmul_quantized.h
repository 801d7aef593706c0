// Terms whose weights are integers: sum over the scales of scale * (the product with the integers).
//
// The integers are exact in bf16, so that a share of inputs under one scale is an ordinary product. Few rows
// expand the weights in registers; more rows expand them once into memory that stays in the first-level
// cache.
#pragma once

#include "cpu/matmul_tile.h"

namespace zweave {
namespace {

// Groups that are expanded at once: with the inputs of a row block they fit the first-level cache. A sum
// under one scale is cut there too, whether anything is expanded or not, so that both ways add alike.
constexpr int64_t kExpanded = 128;

// The end of the sum that begins at a group.
template <class T>
int64_t sum_end(const Term<T>& term, int64_t begin) {
  const int64_t share = divide_up(term.weights.share, kGroup<T>), groups = groups_of(term);
  const int64_t cut = (begin / kExpanded + 1) * kExpanded, scaled = (begin / share + 1) * share;
  const int64_t end = cut < scaled ? cut : scaled;
  return end < groups ? end : groups;
}

// Adds groups [begin, end) of a term to `sums` [rows, kTileOutputs] of a tile.
template <class T, int rows, int panels, class Weight>
void scaled_tile(const Term<T>& term, int64_t row, int64_t panel, int64_t begin, int64_t end, Weight stream,
                 Ahead ahead, float* sums) {
  const int64_t scale_stride = term.weights.scale_groups * kPanel;
  const float* panel_scales = term.weights.scales + panel * scale_stride;
  while (begin < end) {
    const int64_t to = sum_end(term, begin);
    Sums<rows, panels> sum;
    clear<rows, panels>(sum);
    accumulate<T, rows, panels>(term, row, begin, to, stream, ahead, sum);
    const float* scales = panel_scales + begin * kGroup<T> / term.weights.share * kPanel;
#pragma GCC unroll 32
    for (int v = 0; v < panels * kPanelVectors; ++v) {
      const int64_t within = (v % kPanelVectors) * Simd::width;
      const Simd::F scale = Simd::load(scales + (v / kPanelVectors) * scale_stride + within);
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        float* at = sums + r * kTileOutputs + v * Simd::width;
        Simd::store(at, Simd::fma(scale, sum[r][v], Simd::load(at)));
      }
    }
    begin = to;
  }
}

// Groups [begin, end) of a panel as plain panels of T at `to`; `next` is fetched meanwhile.
template <class T, Storage storage>
void expand_panel(const char* panel, int64_t begin, int64_t end, const char* next, T* to) {
  // Integers lie in pairs whatever T is. Slices begin at an even group.
  using Pairs = Stream<bf16, storage>;
  constexpr int64_t apart = kPanel * 2;
  const int64_t first = begin * kGroup<T> / 2, last = divide_up(end * kGroup<T>, 2);
  for (int64_t pair = first; pair < last; ++pair, to += apart) {
    prefetch(next + pair * Pairs::step);
    for (int part = 0; part < kPanelVectors; ++part) {
      const auto value = Pairs{panel + pair * Pairs::step, 0}.weights(part);
      if constexpr (kGroup<T> == 2) {
        Simd::store(to + part * Simd::width * 2, value);
      } else {
        Simd::store(to + part * Simd::width, Simd::even(value));
        Simd::store(to + kPanel + part * Simd::width, Simd::odd(value));
      }
    }
  }
}

// A quantised term under the panels of one tile, added to `sums` [row_end - row_begin, kTileOutputs]. `next`
// is where the panels of the tile after this one begin.
template <class T, int panels, Storage storage>
void scaled_panels(const Term<T>& term, int64_t row_begin, int64_t row_end, int64_t panel, const char* next,
                   float* sums) {
  const int64_t bytes = term.weights.panel_bytes, groups = groups_of(term);
  const char* weights = term.weights.panels + panel * bytes;
  const int64_t rows = row_end - row_begin;
  if constexpr (kGroup<T> == 2) {
    if (rows <= Simd::max_rows) {
      const Stream<T, storage> stream{weights, bytes};
      return with_rows(rows, [&]<int count>() {
        scaled_tile<T, count, panels>(term, row_begin, panel, 0, groups, stream, {{next, next + bytes}},
                                      sums);
      });
    }
  }
  alignas(64) T expanded[panels][kExpanded * kPanel * kGroup<T>];
  const Stream<T, Storage::plain> stream{reinterpret_cast<const char*>(expanded), sizeof(expanded[0])};
  const int64_t blocks = divide_up(rows, Simd::max_rows);
  for (int64_t begin = 0; begin < groups; begin += kExpanded) {
    const int64_t end = begin + kExpanded < groups ? begin + kExpanded : groups;
    for (int i = 0; i < panels; ++i) {
      expand_panel<T, storage>(weights + i * bytes, begin, end, next + i * bytes, expanded[i]);
    }
    int64_t row = row_begin;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t count = divide_up(row_end - row, blocks - block);
      with_rows(count, [&]<int known>() {
        // What comes next was fetched above: these point at what is here.
        scaled_tile<T, known, panels>(term, row, panel, begin, end, stream, {{stream.at, stream.at}},
                                      sums + (row - row_begin) * kTileOutputs);
      });
      row += count;
    }
  }
}

}  // namespace
}  // namespace zweave
