#include <ATen/Parallel.h>
#include <torch/library.h>

#include <atomic>
#include <vector>

#include "cpu/attention_tiles.h"
#include "cpu/checks.h"
#include "cpu/kv_place.h"

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
      store_token(data<T>(from) + t * from.stride(0), mutable_data<T>(cache), at[t], kv_heads, block_size,
                  size);
    };
    at::parallel_for(0, tokens, row_grain(2 * kv_heads * size), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        copy(k, k_cache, t);
        copy(v, v_cache, t);
      }
    });
  });
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
                            heads * size,
                            heads,
                            kv_heads,
                            size,
                            block_size,
                            float(scale),
                            window};
    check_blocks(op, call, tokens, k_cache.size(0), block_table.size(1));
    const std::vector<Tile> all = attention_tiles(call, tokens);
    const int64_t items = int64_t(all.size()) * kv_heads;
    const int64_t threads = std::min<int64_t>(at::get_num_threads(), items);
    const int64_t bytes = kernel.attention_scratch(longest(all), group, size);
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
