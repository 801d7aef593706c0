// The term of a product whose weights lie on a grid (matmul_grid.h), in tile registers: the codes of a group,
// as bf16, are a tile of weights, and its products come back to be scaled.
#pragma once

#include "cpu/gemm/amx_tiles.h"
#include "cpu/gemm/matmul_grid.h"
#include "cpu/gemm/tile_split.h"

namespace zweave {
namespace {

// Packs of a group.
constexpr int64_t kGroupPacks = kGroup / kPack<bf16>;

// The codes of a group of a panel, as a tile.
template <Storage storage>
inline __attribute__((always_inline)) void decode_group(const char* line, char* tile) {
  using Layout = GridLayout<storage>;
  constexpr int pairs = 16 / Layout::bits;
#pragma GCC unroll 16
  for (int i = 0; i < int(kGroupPacks); ++i) {
    const Simd::Pair codes = Simd::codes<Layout::bits, Layout::origin>(line + i / pairs * kLine, i % pairs,
                                                                       static_cast<bf16*>(nullptr));
    _mm512_store_si512(tile + i * kLine, codes);
  }
}

// Adds all groups to the sums of a block of rows.
template <Storage storage, int row_tiles, int panels>
void add_grid_block(const Term<bf16>& term, int64_t row_begin, const TileBlock& block, int64_t panel,
                    const Fetch& fetch, float* sums) {
  using Layout = GridLayout<storage>;
  alignas(64) char codes[panels][kGroupPacks * kLine];
  alignas(64) float part[2 * kPanel * kTileOutputs];
  const int64_t bytes = term.weights.panel_bytes, groups = term.inputs / kGroup;
  const char* weights = term.weights.panels + panel * bytes;
  const bf16* x = term.x + (row_begin + block.row) * term.x_stride;
  const IntegerRows prepared(term.integers, term.inputs);
  Ahead ahead = fetch.ahead(weights, fetch.next, Layout::bytes(groups) / kLine, bytes);
  const int64_t rows = block.height + block.others;
  for (int64_t group = 0; group < groups; ++group, x += kGroup) {
    for (int64_t line = 0; line < divide_up(Layout::block_bytes, kLine * Layout::block_groups); ++line) {
      prefetch(ahead.at);
      if constexpr (panels > 1) prefetch(ahead.at + ahead.apart);
      ahead.at += ahead.step;
    }
    for (int p = 0; p < panels; ++p)
      decode_group<storage>(weights + p * bytes + Layout::codes(group), codes[p]);
    settle(codes);
    clear_sums();
    multiply_tiles<row_tiles, panels>(x, term.x_stride, block.others * term.x_stride, codes[0],
                                      sizeof(codes[0]));
    store_tiles<row_tiles, panels>(part, part + block.others * kTileOutputs);
    Simd::F scale[panels], least[panels];
    load_numbers<Layout::has_halves, panels>(weights + Layout::scales(group), bytes, scale);
    if constexpr (Layout::has_minimum) {
      load_numbers<Layout::has_halves, panels>(weights + Layout::minima(group), bytes, least);
    }
    for (int64_t row = block.shared; row < rows; ++row) {
      float* to = sums + (block.row + row) * kTileOutputs;
      Simd::F total = Simd::set1(0);
      if constexpr (Layout::has_minimum) {
        total = Simd::set1(prepared.group_sums(row_begin + block.row + row)[group]);
      }
#pragma GCC unroll 2
      for (int p = 0; p < panels; ++p) {
        const Simd::F products = Simd::load(part + row * kTileOutputs + p * kPanel);
        Simd::F sum = Simd::fma(scale[p], products, Simd::load(to + p * kPanel));
        if constexpr (Layout::has_minimum) sum = Simd::fma(least[p], total, sum);
        Simd::store(to + p * kPanel, sum);
      }
    }
  }
}

// The term under the panels of one tile, added to `sums`.
template <Storage storage, int panels>
void add_grid_tiles(const Term<bf16>& term, TileRegisters& registers, int64_t row_begin, int64_t row_end,
                    int64_t panel, const char* next, float* sums) {
  const TileSplit split(row_end - row_begin);
  for (int64_t i = 0; i < split.blocks; ++i) {
    const Fetch fetch{next, i, split.blocks};
    const TileBlock block = split.block(i);
    registers.configure(block.height, kGroupPacks);
    const auto add =
        split.row_tiles == 1 ? add_grid_block<storage, 1, panels> : add_grid_block<storage, 2, panels>;
    add(term, row_begin, block, panel, fetch, sums);
  }
}

}  // namespace
}  // namespace zweave
