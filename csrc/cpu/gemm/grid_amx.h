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

// sums += scale * products + minimum * sum of x, of a group of a block of rows.
template <Storage storage, int panels>
inline void scale_group(const Term<bf16>& term, int64_t row_begin, const TileBlock& block,
                        const char* weights, int64_t group, const float* part, float* sums) {
  const int64_t bytes = term.weights.panel_bytes;
  const PreparedRows prepared(term.prepared, term.inputs);
  const GridNumbers<storage, panels> numbers(weights, bytes, group);
  for (int64_t row = block.shared; row < block.height + block.others; ++row) {
    float* to = sums + (block.row + row) * kTileOutputs;
    const float x_sum = prepared.groups(row_begin + block.row + row)[group].sum;
#pragma GCC unroll 2
    for (int p = 0; p < panels; ++p) {
      const Simd::F products = Simd::load(part + row * kTileOutputs + p * kPanel);
      Simd::store(to + p * kPanel, numbers.add(products, x_sum, p, Simd::load(to + p * kPanel)));
    }
  }
}

// Adds all groups to the sums of a block of rows.
template <Storage storage, int row_tiles, int panels>
void add_grid_block(const Term<bf16>& term, int64_t row_begin, const TileBlock& block, int64_t panel,
                    const Fetch& fetch, float* sums) {
  using Layout = GridLayout<storage>;
  constexpr int64_t second = kPanel * kTileOutputs;
  alignas(64) char codes[2][panels][kGroupPacks * kLine];
  alignas(64) float part[2 * second];
  const int64_t bytes = term.weights.panel_bytes, groups = term.inputs / kGroup;
  const char* weights = term.weights.panels + panel * bytes;
  const bf16* x = term.x + (row_begin + block.row) * term.x_stride;
  Ahead ahead = fetch.ahead(weights, fetch.next, Layout::bytes(groups) / kLine, bytes);
  const auto decode = [&](int64_t group, char (&to)[panels][kGroupPacks* kLine]) {
    for (int64_t line = 0; line < divide_up(Layout::block_bytes, kLine * Layout::block_groups); ++line)
      prefetch_line<panels>(ahead);
    for (int p = 0; p < panels; ++p) decode_group<storage>(weights + p * bytes + Layout::codes(group), to[p]);
    settle(to);
  };
  const auto scale = [&](int64_t group, const float* products) {
    scale_group<storage, panels>(term, row_begin, block, weights, group, products, sums);
  };
  int64_t group = 0;
  // One tile of rows leaves registers for a second group, whose products need not wait for the first one's.
  for (; row_tiles == 1 && group + 1 < groups; group += 2, x += 2 * kGroup) {
    decode(group, codes[0]);
    decode(group + 1, codes[1]);
    clear_sums();
    multiply_tiles<1, panels>(x, term.x_stride, 0, codes[0][0], sizeof(codes[0][0]));
    multiply_beside<panels>(x + kGroup, term.x_stride, codes[1][0], sizeof(codes[1][0]));
    store_tiles<2, panels>(part, part + second);
    scale(group, part);
    scale(group + 1, part + second);
  }
  for (; group < groups; ++group, x += kGroup) {
    decode(group, codes[0]);
    clear_sums();
    multiply_tiles<row_tiles, panels>(x, term.x_stride, block.others * term.x_stride, codes[0][0],
                                      sizeof(codes[0][0]));
    store_tiles<row_tiles, panels>(part, part + block.others * kTileOutputs);
    scale(group, part);
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
