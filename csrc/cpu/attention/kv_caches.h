// The tensors of a layer's cache, checked.
#pragma once

#include "cpu/attention/kv_layout.h"
#include "cpu/ops/checks.h"

namespace zweave {

// Throws unless the caches hold blocks of heads of `head_size` as KvLayout has them; kernels/kv_layout.py
// shows the shapes.
template <class T>
KvLayout<T> kv_layout(const char* op, const at::Tensor& k_cache, const at::Tensor& v_cache,
                      int64_t head_size) {
  constexpr int64_t group = kGroup<T>;
  const auto groups = divide_up(head_size, group), columns = divide_up(head_size, kPanel);
  Argument{op, "k_cache", k_cache}
      .dtype(kScalarType<T>)
      .shape({-1, -1, -1, groups, kPanel, group})
      .contiguous();
  const int64_t blocks = k_cache.size(0), kv_heads = k_cache.size(1);
  Argument{op, "v_cache", v_cache}
      .dtype(kScalarType<T>)
      .shape({blocks, kv_heads, columns, -1, kPanel, group})
      .contiguous();
  const int64_t block_size = v_cache.size(3) * group;
  TORCH_CHECK(k_cache.size(2) == divide_up(block_size, kPanel), op, ": k_cache has ", k_cache.size(2),
              " panels of keys a block, v_cache ", block_size, " positions");
  return {kv_heads, block_size, head_size};
}

}  // namespace zweave
