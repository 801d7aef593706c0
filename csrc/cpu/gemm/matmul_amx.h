// Products of bf16 with packed weights in AMX's tile registers.
//
// Every output is one chain here too: the whole and half tiles of all terms and pages in order, then the
// packs of each that no tile covers. It depends on neither the other rows nor the split between threads.
#pragma once

#include "cpu/gemm/amx_tiles.h"
#include "cpu/gemm/matmul.h"

namespace zweave {
namespace {

// The packs of a term that tiles cover.
inline int64_t tiled_packs(const Term<bf16>& term) { return term.inputs / 2 / kHalfPacks * kHalfPacks; }

inline const Term<bf16>& term_or_page(const Matmul<bf16>& m, int64_t i) {
  return i < m.num_terms ? m.terms[i] : m.pages[i - m.num_terms];
}

// One term's tiles of the rows from `row` on and of those that come `others` rows later.
template <int row_tiles, int panels>
void add_tiles(const Term<bf16>& term, int64_t row, int64_t others, int64_t panel, Ahead ahead) {
  const int64_t bytes = term.weights.panel_bytes, packs = tiled_packs(term);
  const char* weights = term.weights.panels + panel * bytes;
  TileRows rows{term.x + row * term.x_stride, term.x_stride, others * term.x_stride};
  const auto fetch = [&](int64_t lines) {
    for (int64_t i = 0; i < lines; ++i, ahead.at += ahead.step) {
      prefetch(ahead.at);
      if constexpr (panels > 1) prefetch(ahead.at + ahead.apart);
    }
  };
  for (int64_t pack = 0; pack + kTilePacks <= packs; pack += kTilePacks) {
    multiply_tiles<false, row_tiles, panels>(rows, weights, bytes);
    fetch(kTilePacks);
    rows.x += kTilePacks * 2;
    weights += kTilePacks * kLine;
  }
  if (packs % kTilePacks) {
    multiply_tiles<true, row_tiles, panels>(rows, weights, bytes);
    fetch(kHalfPacks);
  }
}

// The plain terms and pages of a tile of rows from `row` on and of the tile that begins `others` rows later,
// to `sums`.
template <int row_tiles, int panels>
void tile_block(const Matmul<bf16>& m, int64_t row, int64_t others, int64_t panel, const Fetch& fetch,
                float* sums) {
  clear_sums();
  for (int64_t i = 0; i < m.num_terms + m.num_pages; ++i) {
    const Term<bf16>& term = term_or_page(m, i);
    if (term.weights.storage != Storage::plain) continue;
    const int64_t bytes = term.weights.panel_bytes;
    const char* here = term.weights.panels + panel * bytes;
    const char* then = i == 0 ? fetch.next : here + Simd::tile_panels * bytes;
    add_tiles<row_tiles, panels>(term, row, others, panel, fetch.ahead(here, then, tiled_packs(term), bytes));
  }
  store_tiles<row_tiles, panels>(sums, sums + others * kTileOutputs);
}

// Adds the packs that no tile covers, of all rows.
template <int panels>
void add_remainders(const Matmul<bf16>& m, int64_t row_begin, int64_t row_end, int64_t panel, float* sums) {
  for (int64_t i = 0; i < m.num_terms; ++i) {
    const Term<bf16>& term = m.terms[i];
    const int64_t begin = tiled_packs(term), end = packs_of(term), bytes = term.weights.panel_bytes;
    if (term.weights.storage != Storage::plain || begin == end) continue;
    for (int64_t row = row_begin; row < row_end; row += Simd::max_rows<bf16>) {
      const int64_t left = row_end - row;
      const int64_t count = left < Simd::max_rows<bf16> ? left : Simd::max_rows<bf16>;
      with_rows<Simd::max_rows<bf16>>(count, [&]<int rows>() {
        float* to = sums + (row - row_begin) * kTileOutputs;
        Sums<rows, panels> sum;
        load_sums<rows, panels>(to, kTileOutputs, sum);
        Stream<bf16> stream{term.weights.panels + panel * bytes + begin * kLine, bytes};
        accumulate<bf16, rows, panels>(term, row, begin, end, stream, Ahead{stream.at, 0, 0}, sum);
        store_sums<rows, panels>(sum, to, kTileOutputs);
      });
    }
  }
}

// How the rows of a product are dealt to tiles of one height: one tile, or blocks of two. Tiles overlap where
// their height does not divide the rows; what is computed twice is the same both times.
struct TileSplit {
  explicit TileSplit(int64_t rows)
      : row_tiles(rows <= kPanel ? 1 : 2),
        blocks(divide_up(rows, 2 * kPanel)),
        height(divide_up(rows, row_tiles * blocks)),
        block_rows(row_tiles * height < rows ? row_tiles * height : rows) {}

  int64_t row_tiles, blocks, height, block_rows;
};

struct AmxTiles {
  static bool is_streamed(const Matmul<bf16>&, int64_t) { return false; }

  template <int panels>
  static void multiply(const Matmul<bf16>& m, int64_t row_begin, int64_t row_end, int64_t panel,
                       const char* next, float* sums) {
    const TileSplit split(row_end - row_begin);
    const int64_t last = row_end - row_begin - split.block_rows;
    for (int64_t block = 0; block < split.blocks; ++block) {
      const int64_t at = block * split.block_rows, row = at < last ? at : last;
      const int64_t others = split.block_rows - split.height;
      const Fetch fetch{next, block, split.blocks};
      const auto compute = split.row_tiles == 1 ? tile_block<1, panels> : tile_block<2, panels>;
      compute(m, row_begin + row, others, panel, fetch, sums + row * kTileOutputs);
    }
    add_remainders<panels>(m, row_begin, row_end, panel, sums);
  }
};

inline void matmul_amx(const Matmul<bf16>& m, int64_t row_begin, int64_t row_end, int64_t panel_begin,
                       int64_t panel_end) {
  for (int64_t row = row_begin; row < row_end; row += kRows) {
    const int64_t end = row + kRows < row_end ? row + kRows : row_end;
    const TileRegisters registers(TileSplit(end - row).height);
    matmul<bf16, AmxTiles>(m, row, end, panel_begin, panel_end);
  }
}

}  // namespace
}  // namespace zweave
