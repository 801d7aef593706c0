// Products of bf16 with packed weights in AMX's tile registers.
//
// Every output is one chain here too: the whole tiles of all terms and pages in order, then their half tiles,
// then the packs that neither covers. It depends on neither the other rows nor the split between threads.
#pragma once

#include "cpu/gemm/amx_tiles.h"
#include "cpu/gemm/grid_amx.h"
#include "cpu/gemm/matmul.h"
#include "cpu/gemm/tile_split.h"

namespace zweave {
namespace {

// Packs of a tile. Half of them are a page of components, or what is left of a term.
constexpr int64_t kTilePacks = 16, kHalfPacks = kTilePacks / 2;

// The packs of a term that tiles of a size and of the larger one cover.
template <int64_t packs>
inline int64_t covered_packs(const Term<bf16>& term) {
  return term.inputs / kPack<bf16> / packs * packs;
}

// The tiles of `size` packs of one term, rows from `row` on.
template <int64_t size, int row_tiles, int panels>
void add_tiles(const Term<bf16>& term, int64_t row, int64_t others, int64_t panel, Ahead ahead) {
  const int64_t bytes = term.weights.panel_bytes;
  const int64_t begin = size == kTilePacks ? 0 : covered_packs<2 * size>(term);
  const char* weights = term.weights.panels + panel * bytes + begin * kLine;
  const bf16* x = term.x + row * term.x_stride + begin * kPack<bf16>;
  for (int64_t pack = begin; pack < covered_packs<size>(term); pack += size) {
    multiply_tiles<row_tiles, panels>(x, term.x_stride, others * term.x_stride, weights, bytes);
    for (int64_t line = 0; line < size; ++line) prefetch_line<panels>(ahead);
    x += size * kPack<bf16>;
    weights += size * kLine;
  }
}

// The tiles of `size` packs of all plain terms and pages, to `sums`, or added to them where they are not the
// first.
template <int64_t size, int row_tiles, int panels>
void add_block(const Matmul<bf16>& m, TileRegisters& registers, int64_t row_begin, const TileBlock& block,
               int64_t panel, const Fetch& fetch, float* sums) {
  float* to = sums + block.row * kTileOutputs;
  float* others = to + block.others * kTileOutputs;
  registers.configure(block.height, size);
  if constexpr (size < kTilePacks) load_tiles<row_tiles, panels>(to, others);
  for (int64_t i = 0; i < m.num_terms + m.num_pages; ++i) {
    const Term<bf16>& term = i < m.num_terms ? m.terms[i] : m.pages[i - m.num_terms];
    if (term.weights.storage != Storage::plain) continue;
    const int64_t bytes = term.weights.panel_bytes;
    const char* here = term.weights.panels + panel * bytes;
    const char* then = i == 0 ? fetch.next : here + Simd::tile_panels * bytes;
    const Ahead ahead = fetch.ahead(here, then, covered_packs<size>(term), bytes);
    add_tiles<size, row_tiles, panels>(term, row_begin + block.row, block.others, panel, ahead);
  }
  store_tiles<row_tiles, panels>(to, others);
}

// Adds the packs that no tile covers, of all rows.
template <int panels>
void add_remainders(const Matmul<bf16>& m, int64_t row_begin, int64_t row_end, int64_t panel, float* sums) {
  for (int64_t i = 0; i < m.num_terms; ++i) {
    const Term<bf16>& term = m.terms[i];
    const int64_t begin = covered_packs<kHalfPacks>(term), end = packs_of(term);
    const int64_t bytes = term.weights.panel_bytes;
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

inline bool has_half_tiles(const Matmul<bf16>& m) {
  const auto has = [](const Term<bf16>& term) {
    return term.weights.storage == Storage::plain &&
           covered_packs<kHalfPacks>(term) > covered_packs<kTilePacks>(term);
  };
  for (int64_t i = 0; i < m.num_terms; ++i) {
    if (has(m.terms[i])) return true;
  }
  return m.num_pages > 0;
}

// How matmul.h computes plain terms and pages with tile registers.
struct AmxTiles {
  TileRegisters& registers;

  bool is_streamed(const Matmul<bf16>&, int64_t) const { return false; }

  template <int panels>
  void multiply(const Matmul<bf16>& m, int64_t row_begin, int64_t row_end, int64_t panel, const char* next,
                float* sums) const {
    const TileSplit split(row_end - row_begin);
    const bool has_halves = has_half_tiles(m);
    for (int64_t i = 0; i < split.blocks; ++i) {
      const auto add = [&]<int64_t size>() {
        const Fetch fetch{next, i, split.blocks};
        const auto add_rows = split.row_tiles == 1 ? add_block<size, 1, panels> : add_block<size, 2, panels>;
        add_rows(m, registers, row_begin, split.block(i), panel, fetch, sums);
      };
      add.template operator()<kTilePacks>();
      if (has_halves) add.template operator()<kHalfPacks>();
    }
    add_remainders<panels>(m, row_begin, row_end, panel, sums);
  }

  template <int panels>
  void add(const Term<bf16>& term, int64_t row_begin, int64_t row_end, int64_t panel, const char* next,
           float* sums) const {
    const auto add_grid = [&]<Storage storage>() {
      add_grid_tiles<storage, panels>(term, registers, row_begin, row_end, panel, next, sums);
    };
    switch (term.weights.storage) {
      case Storage::grid4:
        return add_grid.template operator()<Storage::grid4>();
      case Storage::grid4_minimum:
        return add_grid.template operator()<Storage::grid4_minimum>();
      case Storage::grid4_wide:
        return add_grid.template operator()<Storage::grid4_wide>();
      case Storage::grid8:
        return add_grid.template operator()<Storage::grid8>();
      default:
        VectorTiles{}.add<panels>(term, row_begin, row_end, panel, next, sums);
    }
  }
};

inline void matmul_amx(const Matmul<bf16>& m, int64_t row_begin, int64_t row_end, int64_t panel_begin,
                       int64_t panel_end) {
  TileRegisters registers;
  matmul(m, row_begin, row_end, panel_begin, panel_end, AmxTiles{registers});
}

}  // namespace
}  // namespace zweave
