#include <ATen/Parallel.h>

#include "cpu/ops/dispatch.h"
#include "cpu/ops/ops.h"

namespace zweave::ops {

std::tuple<at::Tensor, at::Tensor> greedy(const at::Tensor& logits) {
  Argument{"greedy", "logits", logits}.dtype(at::kFloat).shape({-1, -1});
  TORCH_CHECK(logits.size(1) > 0, "greedy: logits must have at least one column");
  const int64_t rows = logits.size(0), width = logits.size(1);
  at::Tensor id = empty_tensor({rows}, logits.options().dtype(at::kLong));
  at::Tensor finite = empty_tensor({rows}, logits.options().dtype(at::kBool));
  const Greedy call{data<float>(logits), logits.stride(0), width, mutable_data<int64_t>(id),
                    mutable_data<bool>(finite)};
  at::parallel_for(0, rows, row_grain(width),
                   [&](int64_t begin, int64_t end) { kernels().greedy(call, begin, end); });
  return {id, finite};
}

}  // namespace zweave::ops
