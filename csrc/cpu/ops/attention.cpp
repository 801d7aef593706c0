#include <ATen/Parallel.h>

#include "cpu/attention/attention_work.h"
#include "cpu/ops/dispatch.h"
#include "cpu/ops/kv_caches.h"
#include "cpu/ops/ops.h"

namespace zweave::ops {

void write_kv(const at::Tensor& k, const at::Tensor& v, const at::Tensor& k_cache, const at::Tensor& v_cache,
              const at::Tensor& index) {
  const char* op = "write_kv";
  Argument{op, "k", k}.shape({-1, -1, -1}).contiguous_tokens();
  Argument{op, "v", v}.dtype(k.scalar_type()).shape(k.sizes()).contiguous_tokens();
  const int64_t tokens = k.size(0), kv_heads = k.size(1), size = k.size(2);
  dispatch(op, "k", k, [&]<class T>(const TypedKernels<T>&) {
    const KvLayout<T> layout = kv_layout<T>(op, k_cache, v_cache, size);
    TORCH_CHECK(layout.kv_heads == kv_heads, "write_kv: the cache has ", layout.kv_heads, " heads, k has ",
                kv_heads);
    Argument{op, "index", index}.indices<int64_t>(tokens, k_cache.size(0) * layout.block_size,
                                                  "places of the cache");
    const int64_t* at = data<int64_t>(index);
    at::parallel_for(0, tokens, row_grain(2 * kv_heads * size), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        layout.store_keys(data<T>(k) + t * k.stride(0), mutable_data<T>(k_cache), at[t]);
        layout.store_values(data<T>(v) + t * v.stride(0), mutable_data<T>(v_cache), at[t]);
      }
    });
  });
}

at::Tensor paged_attention(const at::Tensor& q, const at::Tensor& k_cache, const at::Tensor& v_cache,
                           const at::Tensor& block_table, const at::Tensor& sequence,
                           const at::Tensor& position, double scale, int64_t window) {
  const char* op = "paged_attention";
  Argument{op, "q", q}.shape({-1, -1, -1}).contiguous_tokens();
  const int64_t tokens = q.size(0), heads = q.size(1), size = q.size(2);
  TORCH_CHECK(window >= 0, "paged_attention: window must be 0 (none) or positive, not ", window);
  Argument{op, "block_table", block_table}.dtype(at::kInt).shape({-1, -1});
  Argument{op, "sequence", sequence}.indices(tokens, block_table.size(0), "rows of block_table");
  Argument{op, "position", position}.dtype(at::kInt).shape({tokens}).contiguous();
  return dispatch(op, "q", q, [&]<class T>(const TypedKernels<T>& kernel) {
    const KvLayout<T> layout = kv_layout<T>(op, k_cache, v_cache, size);
    const int64_t kv_heads = layout.kv_heads, block_size = layout.block_size;
    TORCH_CHECK(kv_heads > 0 && heads % kv_heads == 0, "paged_attention: ", heads,
                " query heads cannot share ", kv_heads, " key-value heads evenly");
    TORCH_CHECK(block_size > 0, "paged_attention: the block size must be positive");
    at::Tensor y = empty_tensor({tokens, heads, size}, q.options());
    if (y.numel() == 0) return y;
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
    const AttentionWork work(call, tokens);
    const int64_t threads = std::min<int64_t>(at::get_num_threads(), work.size());
    const int64_t bytes = kernel.attention_scratch(work.longest(), heads / kv_heads, size);
    const at::Tensor scratch = empty_tensor({threads, bytes}, q.options().dtype(at::kByte));
    at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t rank = begin; rank < end; ++rank) {
        work.share(rank, threads, [&](const AttentionItem* items, int64_t count) {
          kernel.attention(call, items, count, mutable_data<char>(scratch) + rank * bytes);
        });
      }
    });
    return y;
  });
}

}  // namespace zweave::ops
