#include <ATen/Parallel.h>
#include <torch/library.h>

#include <atomic>
#include <cstring>
#include <vector>

#include "cpu/checks.h"

namespace zweave {
namespace {

void check_caches(const char* op, const at::Tensor& k_cache, const at::Tensor& v_cache, at::ScalarType dtype,
                  int64_t size) {
  Argument{op, "k_cache", k_cache}.dtype(dtype).shape({-1, -1, -1, size}).contiguous();
  Argument{op, "v_cache", v_cache}.dtype(dtype).shape(k_cache.sizes()).contiguous();
}

void write_kv(const at::Tensor& k, const at::Tensor& v, const at::Tensor& k_cache, const at::Tensor& v_cache,
              const at::Tensor& index) {
  const char* op = "write_kv";
  Argument{op, "k", k}.shape({-1, -1, -1}).tokens_apart();
  Argument{op, "v", v}.dtype(k.scalar_type()).shape(k.sizes()).tokens_apart();
  const int64_t tokens = k.size(0), kv_heads = k.size(1), size = k.size(2);
  check_caches(op, k_cache, v_cache, k.scalar_type(), size);
  TORCH_CHECK(k_cache.size(1) == kv_heads, "write_kv: the cache has ", k_cache.size(1), " heads, k has ",
              kv_heads);
  Argument{op, "index", index}.dtype(at::kLong).shape({tokens}).contiguous();
  const int64_t block_size = k_cache.size(2), places = k_cache.size(0) * block_size;
  const int64_t* at = data<int64_t>(index);
  for (int64_t t = 0; t < tokens; ++t) {
    TORCH_CHECK(at[t] >= 0 && at[t] < places, "write_kv: index[", t, "] is ", at[t], ", outside the ", places,
                " places of the cache");
  }
  dispatch(op, "k", k, [&]<class T>(const TypedKernels<T>&) {
    const auto copy = [&](const at::Tensor& from, const at::Tensor& cache, int64_t t) {
      const T* source = data<T>(from) + t * from.stride(0);
      T* target =
          mutable_data<T>(cache) + (at[t] / block_size * kv_heads * block_size + at[t] % block_size) * size;
      for (int64_t head = 0; head < kv_heads; ++head) {
        std::memcpy(target + head * block_size * size, source + head * size, size * sizeof(T));
      }
    };
    at::parallel_for(0, tokens, row_grain(2 * kv_heads * size), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        copy(k, k_cache, t);
        copy(v, v_cache, t);
      }
    });
  });
}

// Successive tokens of one sequence, which share the work on its keys.
struct Tile {
  int64_t begin, end;
};

template <class T>
bool succeeds(const Attention<T>& a, int64_t t) {
  return t > 0 && a.sequence[t] == a.sequence[t - 1] && a.position[t] - 1 == a.position[t - 1];
}

template <class T>
std::vector<Tile> tiles(const Attention<T>& a, int64_t tokens, int64_t group) {
  // As many queries as keep their scores in the first-level cache.
  const int64_t most = std::max<int64_t>(1, 48 / group);
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

// Every block that a token will read must exist.
template <class T>
void check_blocks(const Attention<T>& a, int64_t tokens, int64_t blocks, int64_t columns) {
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t end = int64_t(a.position[t]) + 1;
    TORCH_CHECK(end > 0 && end <= columns * a.block_size, "paged_attention: position[", t, "] is ", end - 1,
                ", outside the ", columns * a.block_size, " positions of the block table");
    int64_t first = a.window > 0 && end > a.window ? end - a.window : 0;
    // Its predecessor's blocks have been looked at.
    if (succeeds(a, t)) first = end - 1;
    for (int64_t i = first / a.block_size; i <= (end - 1) / a.block_size; ++i) {
      const int64_t block = a.block_table[a.sequence[t] * a.block_table_stride + i];
      TORCH_CHECK(block >= 0 && block < blocks, "paged_attention: block_table[", a.sequence[t], ", ", i,
                  "] is ", block, ", outside the ", blocks, " blocks of the cache");
    }
  }
}

at::Tensor paged_attention(const at::Tensor& q, const at::Tensor& k_cache, const at::Tensor& v_cache,
                           const at::Tensor& block_table, const at::Tensor& sequence,
                           const at::Tensor& position, double scale, int64_t window) {
  const char* op = "paged_attention";
  Argument{op, "q", q}.shape({-1, -1, -1}).tokens_apart();
  const int64_t tokens = q.size(0), heads = q.size(1), size = q.size(2);
  check_caches(op, k_cache, v_cache, q.scalar_type(), size);
  const int64_t kv_heads = k_cache.size(1);
  TORCH_CHECK(kv_heads > 0 && heads % kv_heads == 0, "paged_attention: ", heads, " query heads cannot share ",
              kv_heads, " key-value heads evenly");
  TORCH_CHECK(k_cache.size(2) > 0, "paged_attention: the block size must be positive");
  TORCH_CHECK(window >= 0, "paged_attention: window must be 0 (none) or positive, not ", window);
  Argument{op, "block_table", block_table}.dtype(at::kInt).shape({-1, -1});
  Argument{op, "sequence", sequence}.indices(tokens, block_table.size(0), "rows of block_table");
  Argument{op, "position", position}.dtype(at::kInt).shape({tokens}).contiguous();
  return dispatch(op, "q", q, [&]<class T>(const TypedKernels<T>& kernel) {
    at::Tensor y = at::empty({tokens, heads, size}, q.options());
    if (y.numel() == 0) return y;
    const int64_t block_size = k_cache.size(2), group = heads / kv_heads;
    const Attention<T> call{data<T>(q),
                            q.stride(0),
                            data<T>(k_cache),
                            data<T>(v_cache),
                            data<int32_t>(block_table),
                            block_table.stride(0),
                            data<int32_t>(sequence),
                            data<int32_t>(position),
                            mutable_data<T>(y),
                            heads,
                            kv_heads,
                            size,
                            block_size,
                            float(scale),
                            window};
    check_blocks(call, tokens, k_cache.size(0), block_table.size(1));
    const std::vector<Tile> all = tiles(call, tokens, group);
    int64_t largest = 0;
    for (const Tile& tile : all) largest = std::max(largest, tile.end - tile.begin);
    const int64_t items = int64_t(all.size()) * kv_heads;
    const int64_t threads = std::min<int64_t>(at::get_num_threads(), items);
    const int64_t bytes = kernel.attention_scratch(largest, group, size);
    const at::Tensor scratch = at::empty({threads, bytes}, q.options().dtype(at::kByte));
    // Contexts differ in length, so the threads take one item after the other; the last ones, which are the
    // longest of a prefill, go first.
    std::atomic<int64_t> next{items};
    at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t) {
      void* own = mutable_data<char>(scratch) + begin * bytes;
      for (int64_t item = --next; item >= 0; item = --next) {
        const Tile& tile = all[item / kv_heads];
        kernel.attention(call, tile.begin, tile.end, item % kv_heads, own);
      }
    });
    return y;
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(zweave, CPU, m) {
  m.impl("write_kv", write_kv);
  m.impl("paged_attention", paged_attention);
}

}  // namespace zweave
