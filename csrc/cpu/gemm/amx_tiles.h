// The tile registers of AMX: sums of up to 32 rows under the 16 outputs of one or two panels.
//
// 16 packs of a panel are a tile as they lie in memory, and so are 32 inputs of some rows.
#pragma once

#include "cpu/gemm/matmul_tile.h"
#include "cpu/simd/kernels.h"

namespace zweave {
namespace {

// The intrinsics do not tell the compiler which memory they read and write.
inline void settle(const void* memory) { __asm__ volatile("" : : "r"(memory) : "memory"); }

inline void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// The registers: 0 to 3 hold sums, two of some rows and two of as many others; 4 and 5 the inputs of both, 6
// and 7 the weights of two panels.
class TileRegisters {
 public:
  ~TileRegisters() { _tile_release(); }

  // For tiles of so many rows and packs; clears the registers.
  void configure(int64_t rows, int64_t packs) {
    if (rows == rows_ && packs == packs_) return clear_sums();
    rows_ = rows;
    packs_ = packs;
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) {
      config.rows[i] = uint8_t(i < 6 ? rows : packs);
      config.row_bytes[i] = uint16_t(i == 4 || i == 5 ? packs * kLine / kPanel : kLine);
    }
    settle(&config);
    _tile_loadconfig(&config);
  }

 private:
  int64_t rows_ = 0, packs_ = 0;
};

constexpr int64_t kSumBytes = kTileOutputs * int64_t(sizeof(float));  // from row to row

// The sums from or to rows of kTileOutputs floats; the other rows begin at `others`.
template <int row_tiles, int panels>
inline void load_tiles(const float* sums, const float* others) {
  settle(sums);
  _tile_loadd(0, sums, kSumBytes);
  if constexpr (panels > 1) _tile_loadd(1, sums + kPanel, kSumBytes);
  if constexpr (row_tiles > 1) {
    _tile_loadd(2, others, kSumBytes);
    if constexpr (panels > 1) _tile_loadd(3, others + kPanel, kSumBytes);
  }
}

template <int row_tiles, int panels>
inline void store_tiles(float* sums, float* others) {
  _tile_stored(0, sums, kSumBytes);
  if constexpr (panels > 1) _tile_stored(1, sums + kPanel, kSumBytes);
  if constexpr (row_tiles > 1) {
    _tile_stored(2, others, kSumBytes);
    if constexpr (panels > 1) _tile_stored(3, others + kPanel, kSumBytes);
  }
  settle(sums);
}

// Adds the products of the packs that a tile holds. others: elements from the rows to the other ones.
template <int row_tiles, int panels>
inline void multiply_tiles(const bf16* x, int64_t x_stride, int64_t others, const char* weights,
                           int64_t panel_bytes) {
  const int64_t row_bytes = x_stride * int64_t(sizeof(bf16));
  _tile_loadd(6, weights, kLine);
  _tile_loadd(4, x, row_bytes);
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (panels > 1) {
    _tile_loadd(7, weights + panel_bytes, kLine);
    _tile_dpbf16ps(1, 4, 7);
  }
  if constexpr (row_tiles > 1) {
    _tile_loadd(5, x + others, row_bytes);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (panels > 1) _tile_dpbf16ps(3, 5, 7);
  }
}

// The same for one tile of rows, into the sums of the other rows: independent of what multiply_tiles<1,
// panels> adds.
template <int panels>
inline void multiply_beside(const bf16* x, int64_t x_stride, const char* weights, int64_t panel_bytes) {
  _tile_loadd(6, weights, kLine);
  _tile_loadd(5, x, x_stride * int64_t(sizeof(bf16)));
  _tile_dpbf16ps(2, 5, 6);
  if constexpr (panels > 1) {
    _tile_loadd(7, weights + panel_bytes, kLine);
    _tile_dpbf16ps(3, 5, 7);
  }
}

}  // namespace
}  // namespace zweave
