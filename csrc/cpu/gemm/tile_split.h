// How rows are dealt to tiles of equal height.
#pragma once

#include "cpu/simd/kernels.h"

namespace zweave {
namespace {

// Where the tiles of a block of rows lie: the first ones and, `others` rows later, as many again. The block
// before has the first `shared` of them too.
struct TileBlock {
  int64_t row, height, others, shared;
};

// The rows of a product in tiles of one height: one tile, or blocks of two. Tiles overlap where their height
// does not divide the rows; what is computed twice is the same both times.
class TileSplit {
 public:
  explicit TileSplit(int64_t rows)
      : row_tiles(rows <= kPanel ? 1 : 2),
        blocks(divide_up(rows, 2 * kPanel)),
        height_(divide_up(rows, row_tiles * blocks)),
        block_rows_(row_tiles * height_ < rows ? row_tiles * height_ : rows),
        last_(rows - block_rows_) {}

  TileBlock block(int64_t i) const {
    const int64_t row = i * block_rows_, at = row < last_ ? row : last_;
    return {at, height_, block_rows_ - height_, row - at};
  }

  const int64_t row_tiles, blocks;

 private:
  int64_t height_, block_rows_, last_;
};

}  // namespace
}  // namespace zweave
