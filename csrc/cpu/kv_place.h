// Where a token's keys or values lie in a cache of blocks.
#pragma once

#include <cstdint>
#include <cstring>

namespace zweave {

// Copies one token [kv_heads, head_size] to place block * block_size + offset of a cache
// [blocks, kv_heads, block_size, head_size].
template <class T>
void store_token(const T* from, T* cache, int64_t place, int64_t kv_heads, int64_t block_size,
                 int64_t head_size) {
  T* to = cache + (place / block_size * kv_heads * block_size + place % block_size) * head_size;
  for (int64_t head = 0; head < kv_heads; ++head) {
    std::memcpy(to + head * block_size * head_size, from + head * head_size, head_size * sizeof(T));
  }
}

}  // namespace zweave
