#include "cpu/product.h"

#include <ATen/Parallel.h>

namespace zweave {
namespace {

// Rows of one unit of work: a multiple of every register tile, and few enough to stay in the second-level
// cache.
constexpr int64_t kRows = 96;

}  // namespace

template <class T>
at::Tensor panels_of(const TypedKernels<T>& kernel, const Argument& weight, int64_t outputs, int64_t inputs) {
  weight.dtype(kScalarType<T>);
  if (weight.tensor.dim() == 4) {
    weight.shape({divide_up(outputs, kPanel), divide_up(inputs, kGroup<T>), kPanel, kGroup<T>}).contiguous();
    return weight.tensor;
  }
  const bool fits =
      weight.tensor.dim() == 2 && weight.tensor.size(0) == outputs && weight.tensor.size(1) == inputs;
  TORCH_CHECK(fits, weight.op, ": ", weight.name, " must be packed or have shape [", outputs, ", ", inputs,
              "], not ", weight.tensor.sizes());
  return pack_panels(kernel, weight.tensor);
}

template <class T>
void multiply(const TypedKernels<T>& kernel, const Matmul<T>& product, int64_t rows) {
  const int64_t panels = divide_up(product.outputs, kPanel);
  const int64_t most = std::min(rows, kRows);
  // A panel costs its weights once and its arithmetic a row; below some 65,000 weights a thread is not worth
  // it.
  const int64_t cost = std::max<int64_t>(1, product.inputs * kPanel * (8 + most) / 8);
  const int64_t grain = std::max<int64_t>(1, 65536 / cost);
  at::parallel_for(0, divide_up(rows, kRows) * panels, grain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t row = begin / panels * kRows, panel = begin % panels;
      const int64_t count = std::min(panels - panel, end - begin);
      kernel.matmul(product, row, std::min(row + kRows, rows), panel, panel + count);
      begin += count;
    }
  });
}

template at::Tensor panels_of(const TypedKernels<float>&, const Argument&, int64_t, int64_t);
template at::Tensor panels_of(const TypedKernels<bf16>&, const Argument&, int64_t, int64_t);
template void multiply(const TypedKernels<float>&, const Matmul<float>&, int64_t);
template void multiply(const TypedKernels<bf16>&, const Matmul<bf16>&, int64_t);

}  // namespace zweave
