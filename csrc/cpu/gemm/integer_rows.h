// Rows of activations as integers: what products with integer weights multiply.
//
// The values of a block share a scale, so that an outlier costs its own block alone. A row is its bytes, then
// the scales and the sums of its blocks. Beside them stand the sums of the groups of the row as it is, two a
// block, for weights on a grid.
#pragma once

#include <cstdint>

#include "cpu/simd/kernels.h"

namespace zweave {

// Inputs of a block; groups of weights that share a scale are whole blocks.
constexpr int64_t kBlock = 64;

struct IntegerRows {
  char* data;
  int64_t blocks;

  IntegerRows(char* data, int64_t inputs) : data(data), blocks(divide_up(inputs, kBlock)) {}

  // In bytes: whole cache lines, and never a multiple of 2 KiB.
  int64_t stride() const {
    return row_stride<char>(divide_up(blocks * int64_t(kBlock + 3 * sizeof(float) + sizeof(int32_t)), 64) *
                            64);
  }
  // Of all rows.
  int64_t bytes(int64_t rows) const { return rows * stride(); }
  // -127 to 127, zero past the inputs.
  int8_t* values(int64_t row) const { return reinterpret_cast<int8_t*>(data + row * stride()); }
  // The value that 1 stands for in each block.
  float* scales(int64_t row) const {
    return reinterpret_cast<float*>(data + row * stride() + blocks * kBlock);
  }
  // Of the values of each block.
  int32_t* sums(int64_t row) const { return reinterpret_cast<int32_t*>(scales(row) + blocks); }
  // Of the groups of the row's own values.
  float* group_sums(int64_t row) const { return scales(row) + 2 * blocks; }
};

}  // namespace zweave
