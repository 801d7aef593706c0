// How the tokens of a step share the work on their keys.
#pragma once

#include <c10/util/Exception.h>

#include <algorithm>
#include <vector>

#include "cpu/kernels.h"

namespace zweave {

// Successive tokens of one sequence, which share the work on its keys.
struct Tile {
  int64_t begin, end;
};

template <class T>
bool succeeds(const Attention<T>& a, int64_t t) {
  return t > 0 && a.sequence[t] == a.sequence[t - 1] && a.position[t] - 1 == a.position[t - 1];
}

template <class T>
std::vector<Tile> attention_tiles(const Attention<T>& a, int64_t tokens) {
  // As many queries as keep their scores in the first-level cache.
  const int64_t most = std::max<int64_t>(1, 48 / (a.heads / a.kv_heads));
  std::vector<Tile> result;
  for (int64_t t = 0; t < tokens; ++t) {
    if (succeeds(a, t) && t - result.back().begin < most) {
      result.back().end = t + 1;
    } else {
      result.push_back({t, t + 1});
    }
  }
  return result;
}

inline int64_t longest(const std::vector<Tile>& tiles) {
  int64_t result = 0;
  for (const Tile& tile : tiles) result = std::max(result, tile.end - tile.begin);
  return result;
}

// Throws unless every block that a token will read exists.
template <class T>
void check_blocks(const char* op, const Attention<T>& a, int64_t tokens, int64_t blocks, int64_t columns) {
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t end = int64_t(a.position[t]) + 1;
    TORCH_CHECK(end > 0 && end <= columns * a.block_size, op, ": position[", t, "] is ", end - 1,
                ", outside the ", columns * a.block_size, " positions of the block table");
    int64_t first = a.window > 0 && end > a.window ? end - a.window : 0;
    // Its predecessor's blocks have been looked at.
    if (succeeds(a, t)) first = end - 1;
    for (int64_t i = first / a.block_size; i <= (end - 1) / a.block_size; ++i) {
      const int64_t block = a.block_table[a.sequence[t] * a.block_table_stride + i];
      TORCH_CHECK(block >= 0 && block < blocks, op, ": block_table[", a.sequence[t], ", ", i, "] is ", block,
                  ", outside the ", blocks, " blocks of the cache");
    }
  }
}

}  // namespace zweave
