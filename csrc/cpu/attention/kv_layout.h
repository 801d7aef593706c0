// Where a token's keys and values lie in a cache of blocks; kernels/layout/kv_layout.py shows the layout.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/simd/kernels.h"

namespace zweave {

// Sizes count elements. A block holds its heads one after the other; of each, the keys packed as a matrix
// [block_size, head_size], the values as one [head_size, block_size].
template <class T>
struct KvLayout {
  int64_t kv_heads, block_size, head_size;

  int64_t key_panel() const { return divide_up(head_size, kPack<T>) * kPanel * kPack<T>; }
  int64_t keys_of_head() const { return divide_up(block_size, kPanel) * key_panel(); }
  int64_t value_panel() const { return divide_up(block_size, kPack<T>) * kPanel * kPack<T>; }
  int64_t values_of_head() const { return divide_up(head_size, kPanel) * value_panel(); }

  // Starts to load the lines that storing a token will write.
  void fetch(const T* k_cache, const T* v_cache, int64_t place) const {
    const auto each = [](const T* at, int64_t count, int64_t stride) {
      for (int64_t i = 0; i < count; ++i) __builtin_prefetch(at + i * stride, 0, 2);
    };
    for (int64_t head = 0; head < kv_heads; ++head) {
      each(k_cache + key_at(place) + head * keys_of_head(), divide_up(head_size, kPack<T>),
           kPanel * kPack<T>);
      each(v_cache + value_at(place) + head * values_of_head(), divide_up(head_size, kPanel), value_panel());
    }
  }

  // Copies one token's keys [kv_heads, head_size] to place block * block_size + offset.
  void store_keys(const T* from, T* cache, int64_t place) const {
    constexpr int64_t pack = kPack<T>;
    const int64_t whole = head_size / pack;
    T* to = cache + key_at(place);
    for (int64_t head = 0; head < kv_heads; ++head, from += head_size, to += keys_of_head()) {
      for (int64_t i = 0; i < whole; ++i) std::memcpy(to + i * kPanel * pack, from + i * pack, 4);
      if (whole * pack < head_size) {
        // Queries are padded by zero, which must not meet NaN.
        to[whole * kPanel * pack] = from[head_size - 1];
        to[whole * kPanel * pack + 1] = T{};
      }
    }
  }

  // The same for values.
  void store_values(const T* from, T* cache, int64_t place) const {
    constexpr int64_t pack = kPack<T>;
    T* to = cache + value_at(place);
    for (int64_t head = 0; head < kv_heads; ++head, from += head_size, to += values_of_head()) {
      for (int64_t column = 0; column < head_size; column += kPanel) {
        T* panel = to + column / kPanel * value_panel();
        const int64_t left = head_size - column, count = left < kPanel ? left : kPanel;
        for (int64_t i = 0; i < count; ++i) panel[i * pack] = from[column + i];
      }
    }
  }

 private:
  // Of the first head.
  int64_t key_at(int64_t place) const {
    const int64_t offset = place % block_size;
    return place / block_size * kv_heads * keys_of_head() + offset / kPanel * key_panel() +
           offset % kPanel * kPack<T>;
  }
  int64_t value_at(int64_t place) const {
    const int64_t offset = place % block_size;
    return place / block_size * kv_heads * values_of_head() + offset / kPack<T> * kPanel * kPack<T> +
           offset % kPack<T>;
  }
};

}  // namespace zweave
