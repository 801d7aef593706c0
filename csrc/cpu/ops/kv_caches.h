// Checks of what attention reads: the caches of a layer and the blocks of a step.
#pragma once

#include "cpu/attention/attention_work.h"
#include "cpu/attention/kv_layout.h"
#include "cpu/ops/dispatch.h"

namespace zweave {

// Throws unless the caches hold blocks of heads of `head_size` as KvLayout has them;
// kernels/layout/kv_layout.py shows the shapes.
template <class T>
KvLayout<T> kv_layout(const char* op, const at::Tensor& k_cache, const at::Tensor& v_cache,
                      int64_t head_size) {
  constexpr int64_t pack = kPack<T>;
  const auto packs = divide_up(head_size, pack), columns = divide_up(head_size, kPanel);
  Argument{op, "k_cache", k_cache}
      .dtype(kScalarType<T>)
      .shape({-1, -1, -1, packs, kPanel, pack})
      .contiguous();
  const int64_t blocks = k_cache.size(0), kv_heads = k_cache.size(1);
  Argument{op, "v_cache", v_cache}
      .dtype(kScalarType<T>)
      .shape({blocks, kv_heads, columns, -1, kPanel, pack})
      .contiguous();
  const int64_t block_size = v_cache.size(3) * pack;
  TORCH_CHECK(k_cache.size(2) == divide_up(block_size, kPanel), op, ": k_cache has ", k_cache.size(2),
              " panels of keys a block, v_cache ", block_size, " positions");
  return {kv_heads, block_size, head_size};
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
