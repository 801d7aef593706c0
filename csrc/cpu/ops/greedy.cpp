#include <ATen/Parallel.h>
#include <torch/library.h>

#include "cpu/ops/checks.h"

namespace zweave {
namespace {

std::tuple<at::Tensor, at::Tensor> greedy(const at::Tensor& logits) {
  Argument{"greedy", "logits", logits}.dtype(at::kFloat).shape({-1, -1});
  TORCH_CHECK(logits.size(1) > 0, "greedy: logits must have at least one column");
  const int64_t rows = logits.size(0), width = logits.size(1);
  at::Tensor id = at::empty({rows}, logits.options().dtype(at::kLong));
  at::Tensor finite = at::empty({rows}, logits.options().dtype(at::kBool));
  const Greedy call{data<float>(logits), logits.stride(0), width, mutable_data<int64_t>(id),
                    mutable_data<bool>(finite)};
  at::parallel_for(0, rows, row_grain(width),
                   [&](int64_t begin, int64_t end) { kernels().greedy(call, begin, end); });
  return {id, finite};
}

}  // namespace

TORCH_LIBRARY_IMPL(zweave, CPU, m) { m.impl("greedy", greedy); }

}  // namespace zweave
