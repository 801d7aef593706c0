// The tile registers of AMX: sums of up to 32 rows under the 16 outputs of one or two panels.
//
// 16 packs of a panel are a tile as they lie in memory, and so are 32 inputs of some rows. A page of
// components has 8 packs, for which two registers are half as long.
#pragma once

#include "cpu/gemm/matmul_tile.h"
#include "cpu/simd/kernels.h"

namespace zweave {
namespace {

constexpr int64_t kTilePacks = 16, kHalfPacks = kTilePacks / 2;

// The intrinsics do not tell the compiler which memory they read and write.
inline void settle(const void* memory) { __asm__ volatile("" : : "r"(memory) : "memory"); }

// Configures the registers for its lifetime: 0 to 3 hold sums, two of some rows and two of as many others; 4
// and 5 inputs and weights of 16 packs, 6 and 7 of 8.
class TileRegisters {
 public:
  explicit TileRegisters(int64_t rows) {
    Config config;
    for (int sum = 0; sum < 4; ++sum) config.set(sum, rows, kLine);
    config.set(4, rows, kLine);
    config.set(5, kTilePacks, kLine);
    config.set(6, rows, kLine / 2);
    config.set(7, kHalfPacks, kLine);
    settle(&config);
    _tile_loadconfig(&config);
  }
  ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;

 private:
  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    void set(int tile, int64_t count, int64_t bytes) {
      rows[tile] = uint8_t(count);
      row_bytes[tile] = uint16_t(bytes);
    }
  };
};

template <bool half>
inline void load_inputs(const bf16* x, int64_t row_bytes) {
  if constexpr (half) {
    _tile_loadd(6, x, row_bytes);
  } else {
    _tile_loadd(4, x, row_bytes);
  }
}

template <bool half>
inline void load_weights(const char* panel) {
  if constexpr (half) {
    _tile_loadd(7, panel, kLine);
  } else {
    _tile_loadd(5, panel, kLine);
  }
}

template <int sum, bool half>
inline void add_product() {
  if constexpr (half) {
    if constexpr (sum == 0) _tile_dpbf16ps(0, 6, 7);
    if constexpr (sum == 1) _tile_dpbf16ps(1, 6, 7);
    if constexpr (sum == 2) _tile_dpbf16ps(2, 6, 7);
    if constexpr (sum == 3) _tile_dpbf16ps(3, 6, 7);
  } else {
    if constexpr (sum == 0) _tile_dpbf16ps(0, 4, 5);
    if constexpr (sum == 1) _tile_dpbf16ps(1, 4, 5);
    if constexpr (sum == 2) _tile_dpbf16ps(2, 4, 5);
    if constexpr (sum == 3) _tile_dpbf16ps(3, 4, 5);
  }
}

inline void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// The sums to rows of kTileOutputs floats; the other rows begin at `others`.
template <int row_tiles, int panels>
inline void store_tiles(float* sums, float* others) {
  constexpr int64_t row_bytes = kTileOutputs * int64_t(sizeof(float));
  _tile_stored(0, sums, row_bytes);
  if constexpr (panels > 1) _tile_stored(1, sums + kPanel, row_bytes);
  if constexpr (row_tiles > 1) {
    _tile_stored(2, others, row_bytes);
    if constexpr (panels > 1) _tile_stored(3, others + kPanel, row_bytes);
  }
  settle(sums);
}

// Some rows and as many others, as the operands of a step find them.
struct TileRows {
  const bf16* x;
  int64_t stride, others;  // elements from row to row, and to the others
};

// Adds the products of 16 packs, or of 8.
template <bool half, int row_tiles, int panels>
inline void multiply_tiles(const TileRows& rows, const char* weights, int64_t panel_bytes) {
  const int64_t row_bytes = rows.stride * int64_t(sizeof(bf16));
  load_inputs<half>(rows.x, row_bytes);
  load_weights<half>(weights);
  add_product<0, half>();
  if constexpr (panels > 1) {
    load_weights<half>(weights + panel_bytes);
    add_product<1, half>();
  }
  if constexpr (row_tiles > 1) {
    load_inputs<half>(rows.x + rows.others, row_bytes);
    if constexpr (panels > 1) {
      add_product<3, half>();
      load_weights<half>(weights);
    }
    add_product<2, half>();
  }
}

}  // namespace
}  // namespace zweave
