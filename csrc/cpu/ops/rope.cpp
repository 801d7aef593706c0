#include <ATen/Parallel.h>

#include "cpu/ops/dispatch.h"
#include "cpu/ops/ops.h"

namespace zweave::ops {

void rope(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cos, const at::Tensor& sin,
          const at::Tensor& position) {
  const char* op = "rope";
  Argument{op, "q", q}.shape({-1, -1, -1}).contiguous_tokens().rows_disjoint();
  const int64_t tokens = q.size(0), size = q.size(2);
  TORCH_CHECK(size % 2 == 0, "rope: the head size must be even, not ", size);
  Argument{op, "k", k}.dtype(q.scalar_type()).shape({tokens, -1, size}).contiguous_tokens().rows_disjoint();
  Argument{op, "cos", cos}.dtype(at::kFloat).shape({-1, size / 2}).contiguous();
  Argument{op, "sin", sin}.dtype(at::kFloat).shape(cos.sizes()).contiguous();
  Argument{op, "position", position}.indices(tokens, cos.size(0), "positions of cos and sin");
  dispatch(op, "q", q, [&]<class T>(const TypedKernels<T>& kernel) {
    for (const at::Tensor* x : {&q, &k}) {
      if (x->numel() == 0) continue;
      const Rope<T> call{mutable_data<T>(*x), x->stride(0),           x->size(1), size, data<float>(cos),
                         data<float>(sin),    data<int32_t>(position)};
      at::parallel_for(0, tokens, row_grain(x->size(1) * size),
                       [&](int64_t begin, int64_t end) { kernel.rope(call, begin, end); });
    }
  });
}

}  // namespace zweave::ops
