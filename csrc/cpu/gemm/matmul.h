// Products with packed weights.
//
// Every output is one chain of multiply-adds over its inputs in order, whatever the tile it is computed in,
// so that a row's result depends on neither the other rows nor the split between threads.
#pragma once

#include "cpu/gemm/matmul_grid.h"
#include "cpu/gemm/matmul_integer.h"
#include "cpu/gemm/matmul_tile.h"
#include "cpu/simd/kernels.h"

namespace zweave {
namespace {

// Packs of inputs that row blocks pass over together. A tile's weights for so many fill an eighth of the
// second-level cache, and so do those of the next tile, which are fetched meanwhile.
constexpr int64_t kSlice = 1024;

// Packs of the plain terms, without the pages.
template <class T>
int64_t term_packs(const Matmul<T>& m) {
  int64_t packs = 0;
  for (int64_t i = 0; i < m.num_terms; ++i) {
    if (m.terms[i].weights.storage == Storage::plain) packs += packs_of(m.terms[i]);
  }
  return packs;
}

// Packs of the plain terms and of the pages.
template <class T>
int64_t plain_packs(const Matmul<T>& m) {
  return term_packs(m) + m.num_pages * (kPanel / kPack<T>);
}

// Whether a product of so few rows is bound by memory alone. With integer weights it never is: they are read
// so fast that arithmetic counts from one row on.
template <class T>
bool is_streamed(const Matmul<T>& m, int64_t rows) {
  for (int64_t i = 0; i < m.num_terms; ++i) {
    if (m.terms[i].weights.storage != Storage::plain) return false;
  }
  return rows <= Simd::streamed_rows;
}

// One tile over packs [begin, end) of all plain terms and pages, added to `sums` [rows, kTileOutputs] unless
// it begins at 0.
template <class T, int rows, int panels>
void matmul_tile(const Matmul<T>& m, int64_t row, int64_t panel, int64_t begin, int64_t end, Fetch fetch,
                 float* sums) {
  Sums<rows, panels> sum;
  if (begin) {
    load_sums<rows, panels>(sums, kTileOutputs, sum);
  } else {
    clear<rows, panels>(sum);
  }
  int64_t first = 0;
  for (int64_t i = 0; i < m.num_terms + m.num_pages && first < end; ++i) {
    const Term<T>& term = i < m.num_terms ? m.terms[i] : m.pages[i - m.num_terms];
    if (term.weights.storage != Storage::plain) continue;
    const int64_t packs = packs_of(term);
    const int64_t from = begin > first ? begin - first : 0;
    const int64_t to = end - first < packs ? end - first : packs;
    if (from < to) {
      const int64_t bytes = term.weights.panel_bytes;
      Stream<T> stream{term.weights.panels + panel * bytes + from * kLine, bytes};
      // A later term prefetches its own weights of the next tile.
      const char* then = i == 0 ? fetch.next : stream.at + Simd::tile_panels * bytes;
      accumulate<T, rows, panels>(term, row, from, to, stream, fetch.ahead(stream.at, then, to - from, bytes),
                                  sum);
    }
    first += packs;
  }
  store_sums<rows, panels>(sum, sums, kTileOutputs);
}

// The plain terms of all rows under the panels of one tile, to `sums` [row_end - row_begin, kTileOutputs].
// The row blocks pass over a slice of the weights one after the other, and each prefetches its share of the
// weights that come next.
template <class T, int panels>
void plain_panels(const Matmul<T>& m, int64_t row_begin, int64_t row_end, int64_t panel, const char* next,
                  float* sums) {
  const int64_t blocks = divide_up(row_end - row_begin, Simd::max_rows<T>);
  const bool prefetches = !is_streamed(m, row_end - row_begin);
  const int64_t packs = plain_packs(m);
  const Weights& first = m.terms[0].weights;
  const int64_t first_packs = first.storage == Storage::plain ? packs_of(m.terms[0]) : 0;
  const char* weight = first.panels + panel * first.panel_bytes;
  int64_t begin = 0;
  do {
    const int64_t end = begin + kSlice < packs ? begin + kSlice : packs;
    // What comes next of the first term: its next slice, or the next tile.
    const char* then = end < first_packs ? weight + end * kLine : next;
    int64_t row = row_begin;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t count = divide_up(row_end - row, blocks - block);
      const Fetch fetch{prefetches ? then : nullptr, block, blocks};
      float* to = sums + (row - row_begin) * kTileOutputs;
      with_rows<Simd::max_rows<T>>(
          count, [&]<int rows>() { matmul_tile<T, rows, panels>(m, row, panel, begin, end, fetch, to); });
      row += count;
    }
    begin = end;
  } while (begin < packs);
}

// Prefetches a tile's part of the rows of `scale`: slots lie far apart, and nothing else reads them.
template <class T>
void fetch_scales(const Matmul<T>& m, int64_t row_begin, int64_t row_end, int64_t panel) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const float* at = m.scale + m.slot[row] * m.scale_stride + panel * kPanel;
    for (int64_t i = 0; i < kTileOutputs * int64_t(sizeof(float)); i += kLine) {
      prefetch(reinterpret_cast<const char*>(at) + i);
    }
  }
}

template <class T>
using Adder = void (*)(const Term<T>&, int64_t row_begin, int64_t row_end, int64_t panel, const char* next,
                       float* sums);

// What adds a term that is not plain.
template <class T, int panels>
Adder<T> adder(Storage storage) {
  switch (storage) {
    case Storage::int8:
      return add_integers<T, panels, Storage::int8>;
    case Storage::grid4:
      return add_grid<T, panels, Storage::grid4>;
    case Storage::grid4_minimum:
      return add_grid<T, panels, Storage::grid4_minimum>;
    case Storage::grid4_wide:
      return add_grid<T, panels, Storage::grid4_wide>;
    case Storage::grid8:
      return add_grid<T, panels, Storage::grid8>;
    default:
      return add_integers<T, panels, Storage::int4>;
  }
}

// How the plain terms and the pages are computed, and the other terms: in vectors.
struct VectorTiles {
  template <class T>
  bool is_streamed(const Matmul<T>& m, int64_t rows) const {
    return zweave::is_streamed(m, rows);
  }
  template <int panels, class T>
  void multiply(const Matmul<T>& m, int64_t row_begin, int64_t row_end, int64_t panel, const char* next,
                float* sums) const {
    plain_panels<T, panels>(m, row_begin, row_end, panel, next, sums);
  }
  template <int panels, class T>
  void add(const Term<T>& term, int64_t row_begin, int64_t row_end, int64_t panel, const char* next,
           float* sums) const {
    adder<T, panels>(term.weights.storage)(term, row_begin, row_end, panel, next, sums);
  }
};

// All rows under the panels of one tile.
template <int panels, class T, class Tiles>
void matmul_panels(const Matmul<T>& m, int64_t row_begin, int64_t row_end, int64_t panel, const char* next,
                   const Tiles& tiles) {
  alignas(64) float sums[kRows * kTileOutputs];
  if (m.scale) fetch_scales(m, row_begin, row_end, panel);
  // Without plain terms this writes zeros.
  tiles.template multiply<panels>(m, row_begin, row_end, panel, next, sums);
  for (int64_t i = 0; i < m.num_terms; ++i) {
    const Term<T>& term = m.terms[i];
    const char* then = i == 0 ? next : term.weights.panels + (panel + panels) * term.weights.panel_bytes;
    if (term.weights.storage == Storage::plain) continue;
    tiles.template add<panels>(term, row_begin, row_end, panel, then, sums);
  }
  finish<T, panels>(m, row_begin, row_end - row_begin, panel, sums);
}

// A few rows under many panels: one term of all panels, then the other, then the pages, so that memory is
// read in long streams.
template <class T>
void stream_panels(const Matmul<T>& m, int64_t row_begin, int64_t row_end, int64_t panel_begin,
                   int64_t panel_end) {
  constexpr int64_t most = 32;
  alignas(64) float sums[most][Simd::streamed_rows * kTileOutputs];
  const int64_t packs[] = {0, packs_of(m.terms[0]), term_packs(m), plain_packs(m)};
  for (int64_t first = panel_begin; first < panel_end; first += most) {
    const int64_t count = panel_end - first < most ? panel_end - first : most;
    if (m.scale) {
      for (int64_t i = 0; i < count; ++i) fetch_scales(m, row_begin, row_end, first + i);
    }
    for (int64_t term = 0; term < 3; ++term) {
      if (term && packs[term] == packs[term + 1]) continue;
      for (int64_t i = 0; i < count; ++i) {
        with_rows<Simd::streamed_rows>(row_end - row_begin, [&]<int rows>() {
          matmul_tile<T, rows, 1>(m, row_begin, first + i, packs[term], packs[term + 1], Fetch{}, sums[i]);
        });
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      finish<T, 1>(m, row_begin, row_end - row_begin, first + i, sums[i]);
    }
  }
}

template <class T, class Tiles>
void matmul(const Matmul<T>& m, int64_t row_begin, int64_t row_end, int64_t panel_begin, int64_t panel_end,
            const Tiles& tiles) {
  const Weights& first = m.terms[0].weights;
  for (int64_t row = row_begin; row < row_end; row += kRows) {
    const int64_t end = row + kRows < row_end ? row + kRows : row_end;
    if (tiles.is_streamed(m, end - row)) {
      stream_panels(m, row, end, panel_begin, panel_end);
      continue;
    }
    for (int64_t panel = panel_begin; panel < panel_end; panel += Simd::tile_panels) {
      const int64_t after = panel + Simd::tile_panels;
      const void* next = after < panel_end || !m.next ? first.panels + after * first.panel_bytes : m.next;
      const char* then = static_cast<const char*>(next);
      if (after <= panel_end) {
        matmul_panels<Simd::tile_panels>(m, row, end, panel, then, tiles);
      } else {
        matmul_panels<1>(m, row, end, panel, then, tiles);
      }
    }
  }
}

template <class T>
void matmul(const Matmul<T>& m, int64_t row_begin, int64_t row_end, int64_t panel_begin, int64_t panel_end) {
  matmul(m, row_begin, row_end, panel_begin, panel_end, VectorTiles{});
}

}  // namespace
}  // namespace zweave
