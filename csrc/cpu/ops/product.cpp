#include "cpu/ops/product.h"

#include "cpu/gemm/run_products.h"
#include "cpu/threads/run_team.h"

namespace zweave {
namespace {

void check_matrix(const Argument& weight, int64_t outputs, int64_t columns) {
  const at::Tensor& w = weight.tensor;
  TORCH_CHECK(w.dim() == 2 && w.size(0) == outputs && w.size(1) == columns, weight.op, ": ", weight.name,
              " must be packed or have shape [", outputs, ", ", columns, "], not ", w.sizes());
}

}  // namespace

template <class T>
PackedMatrix packed(const TypedKernels<T>& kernel, const Argument& weight, int64_t outputs, int64_t inputs) {
  weight.dtype(kScalarType<T>);
  if (weight.tensor.dim() == 4) {
    check_packed(weight.op, weight.name, {weight.tensor}, kScalarType<T>, outputs, inputs);
    return {weight.tensor};
  }
  check_matrix(weight, outputs, inputs);
  const at::Tensor panels = empty_tensor(panel_shape<T>(outputs, inputs), weight.tensor.options());
  pack_panels(kernel, weight.tensor, panels);
  return {panels};
}

template <class T>
PackedMatrix packed_factor(const TypedKernels<T>& kernel, const Argument& weight,
                           const std::optional<at::Tensor>& scale, int64_t group, int64_t outputs,
                           int64_t inputs) {
  const Storage storage = storage_of(weight.tensor);
  if (storage == Storage::plain) {
    TORCH_CHECK(!scale, weight.op, ": ", weight.name, " has scales, but is neither int8 nor int4");
    return packed(kernel, weight, outputs, inputs);
  }
  TORCH_CHECK(scale, weight.op, ": ", weight.name, " is int8 or int4 and needs scales");
  PackedMatrix result{weight.tensor, scale, group};
  if (weight.tensor.dim() != 4) {
    check_matrix(weight, outputs, storage == Storage::int8 ? inputs : divide_up(inputs, 2));
    const Argument scales{weight.op, weight.name, *scale};
    scales.dtype(at::kFloat).shape({outputs, -1});
    result.panels = pack_integers(weight.tensor);
    result.scale = empty_tensor(panel_shape<float>(outputs, scale->size(1)), scale->options());
    pack_panels(kernels().f32, *scale, *result.scale);
  }
  check_packed(weight.op, weight.name, result, kScalarType<T>, outputs, inputs);
  return result;
}

template <class T>
at::Tensor empty_rows(int64_t rows, int64_t width, const at::TensorOptions& options) {
  return empty_tensor({rows, row_stride<T>(width)}, options).slice(1, 0, width);
}

template <class T>
at::Tensor readable_rows(const at::Tensor& x) {
  // A few rows fit the ways of the cache as they are.
  if (x.size(0) <= 4 || row_stride<T>(x.stride(0)) == x.stride(0)) return x;
  return empty_rows<T>(x.size(0), x.size(1), x.options()).copy_(x);
}

at::Tensor room_for_integers(const PackedMatrix& weight, int64_t rows, int64_t inputs) {
  if (!weight.scale) return {};
  const int64_t bytes = IntegerRows(nullptr, inputs).bytes(rows);
  return empty_tensor({at::get_num_threads(), bytes}, weight.panels.options().dtype(at::kChar));
}

template <class T>
void add_term(Matmul<T>& product, const at::Tensor& x, const PackedMatrix& weight,
              const at::Tensor& integers) {
  const int64_t inputs = x.size(1);
  char* room = integers.defined() ? mutable_data<char>(integers) : nullptr;
  product.terms[product.num_terms++] = {data<T>(x), x.stride(0), weights_of(weight, inputs), inputs, room};
}

template <class T>
Matmul<T> product(const at::Tensor& x, const PackedMatrix& weight, const at::Tensor& y,
                  const at::Tensor& integers) {
  Matmul<T> result{};
  add_term(result, x, weight, integers);
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
void compute(const TypedKernels<T>& kernel, std::initializer_list<Matmul<T>> products, int64_t rows) {
  run_products(kernel, products, rows, [](const auto& run) { run_team(run); });
}

#define ZWEAVE_INSTANTIATE(T)                                                                               \
  template PackedMatrix packed(const TypedKernels<T>&, const Argument&, int64_t, int64_t);                  \
  template PackedMatrix packed_factor(const TypedKernels<T>&, const Argument&,                              \
                                      const std::optional<at::Tensor>&, int64_t, int64_t, int64_t);         \
  template Matmul<T> product(const at::Tensor&, const PackedMatrix&, const at::Tensor&, const at::Tensor&); \
  template at::Tensor empty_rows<T>(int64_t, int64_t, const at::TensorOptions&);                            \
  template at::Tensor readable_rows<T>(const at::Tensor&);                                                  \
  template void add_term(Matmul<T>&, const at::Tensor&, const PackedMatrix&, const at::Tensor&);            \
  template void scale_rows(Matmul<T>&, const at::Tensor&, const at::Tensor&);                               \
  template void compute(const TypedKernels<T>&, std::initializer_list<Matmul<T>>, int64_t);
ZWEAVE_INSTANTIATE(float)
ZWEAVE_INSTANTIATE(bf16)
#undef ZWEAVE_INSTANTIATE

}  // namespace zweave
