// What products read of rows of activations beside, or in place of, the rows themselves.
//
// Integer weights multiply bytes: the values of a block share a scale, so that an outlier costs its own block
// alone. A grid's codes multiply whole numbers of two bytes (grid_rows.h), which share a scale with their
// group; some kernels multiply the row as it is and read the sums of its groups alone. Products of a phase
// may want both of one row, so that there is room for both.
#pragma once

#include <cstdint>

#include "cpu/simd/kernels.h"

namespace zweave {

// Inputs of a block; groups of integer weights that share a scale are whole blocks.
constexpr int64_t kBlock = 64;
// Inputs of a group of a grid.
constexpr int64_t kGroup = 32;

// Values none of which is larger become zero: the inverse of their scale might not be finite.
constexpr float kSmallestPeak = 1e-30f;

// A group of a row.
struct RowGroup {
  int8_t wholes[2 * kGroup];  // its values as whole numbers
  float scale;                // what 1 stands for
  float sum;                  // of the values
};

struct PreparedRows {
  char* data;
  int64_t blocks;

  PreparedRows(char* data, int64_t inputs) : data(data), blocks(divide_up(inputs, kBlock)) {}

  // In bytes: whole cache lines, and never a multiple of 2 KiB.
  int64_t stride() const {
    constexpr int64_t groups = kBlock / kGroup;
    constexpr int64_t bytes = kBlock + sizeof(float) + sizeof(int32_t) + groups * sizeof(RowGroup);
    return row_stride<char>(divide_up(blocks * bytes, 64) * 64);
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
  RowGroup* groups(int64_t row) const { return reinterpret_cast<RowGroup*>(sums(row) + blocks); }
};

}  // namespace zweave
