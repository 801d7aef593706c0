#include "cpu/product.h"

#include <ATen/Parallel.h>

namespace zweave {

template <class T>
at::Tensor panels_of(const TypedKernels<T>& kernel, const Argument& weight, int64_t outputs, int64_t inputs) {
  weight.dtype(kScalarType<T>);
  if (weight.tensor.dim() == 4) {
    weight.shape(panel_shape<T>(outputs, inputs)).contiguous();
    return weight.tensor;
  }
  const bool fits =
      weight.tensor.dim() == 2 && weight.tensor.size(0) == outputs && weight.tensor.size(1) == inputs;
  TORCH_CHECK(fits, weight.op, ": ", weight.name, " must be packed or have shape [", outputs, ", ", inputs,
              "], not ", weight.tensor.sizes());
  const at::Tensor packed = at::empty(panel_shape<T>(outputs, inputs), weight.tensor.options());
  pack_panels(kernel, weight.tensor, packed);
  return packed;
}

template <class T>
at::Tensor empty_rows(int64_t rows, int64_t width, const at::TensorOptions& options) {
  return at::empty({rows, row_stride<T>(width)}, options).slice(1, 0, width);
}

template <class T>
at::Tensor readable_rows(const at::Tensor& x) {
  // A few rows fit the ways of the cache as they are.
  if (x.size(0) <= 4 || row_stride<T>(x.stride(0)) == x.stride(0)) return x;
  return empty_rows<T>(x.size(0), x.size(1), x.options()).copy_(x);
}

template <class T>
void add_term(Matmul<T>& product, const at::Tensor& x, const at::Tensor& panels) {
  product.terms[product.num_terms++] = {data<T>(x), x.stride(0), data<T>(panels),
                                        panels.size(1) * kPanel * kGroup<T>, x.size(1)};
}

template <class T>
Matmul<T> product(const at::Tensor& x, const at::Tensor& panels, const at::Tensor& y) {
  Matmul<T> result{};
  add_term(result, x, panels);
  result.outputs = y.size(1);
  if (y.scalar_type() == kScalarType<T>) {
    result.y = mutable_data<T>(y);
  } else {
    result.y_f32 = mutable_data<float>(y);
  }
  result.y_stride = y.stride(0);
  return result;
}

template <class T>
void scale_rows(Matmul<T>& product, const at::Tensor& scale, const at::Tensor& slot) {
  product.scale = data<float>(scale);
  product.scale_stride = scale.stride(0);
  product.slot = data<int32_t>(slot);
}

template <class T>
void multiply(const TypedKernels<T>& kernel, const Matmul<T>& product, int64_t begin, int64_t end) {
  const int64_t panels = divide_up(product.outputs, kPanel), tiles = divide_up(panels, kTilePanels);
  const int64_t rows = end - begin, blocks = divide_up(rows, kRows);
  const int64_t most = divide_up(rows, std::max<int64_t>(1, blocks));
  // A tile costs its weights once and its arithmetic a row; below some 65,000 weights a thread is not worth
  // it.
  const int64_t weights = product.terms[0].inputs * kPanel * kTilePanels;
  const int64_t grain = std::max<int64_t>(1, 65536 / std::max<int64_t>(1, weights * (8 + most) / 8));
  at::parallel_for(0, blocks * tiles, grain, [&](int64_t first, int64_t last) {
    while (first < last) {
      const int64_t row = begin + first / tiles * most, tile = first % tiles;
      const int64_t count = std::min(tiles - tile, last - first);
      kernel.matmul(product, row, std::min(row + most, end), tile * kTilePanels,
                    std::min((tile + count) * kTilePanels, panels));
      first += count;
    }
  });
}

#define ZWEAVE_INSTANTIATE(T)                                                               \
  template at::Tensor panels_of(const TypedKernels<T>&, const Argument&, int64_t, int64_t); \
  template Matmul<T> product(const at::Tensor&, const at::Tensor&, const at::Tensor&);      \
  template at::Tensor empty_rows<T>(int64_t, int64_t, const at::TensorOptions&);            \
  template at::Tensor readable_rows<T>(const at::Tensor&);                                  \
  template void add_term(Matmul<T>&, const at::Tensor&, const at::Tensor&);                 \
  template void scale_rows(Matmul<T>&, const at::Tensor&, const at::Tensor&);               \
  template void multiply(const TypedKernels<T>&, const Matmul<T>&, int64_t, int64_t);
ZWEAVE_INSTANTIATE(float)
ZWEAVE_INSTANTIATE(bf16)
#undef ZWEAVE_INSTANTIATE

}  // namespace zweave
