#include "cpu/ops/ops.h"
#include "cpu/ops/product.h"

namespace zweave::ops {

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                  int64_t outputs, std::optional<at::ScalarType> out_dtype) {
  Argument{"linear", "x", x}.shape({-1, -1});
  const at::ScalarType y_dtype = out_dtype.value_or(x.scalar_type());
  TORCH_CHECK(y_dtype == x.scalar_type() || y_dtype == at::kFloat,
              "linear: out_dtype must be float32 or the dtype of x, not ", y_dtype);
  return dispatch("linear", "x", x, [&]<class T>(const TypedKernels<T>& kernel) {
    const int64_t rows = x.size(0), inputs = x.size(1);
    if (bias) Argument{"linear", "bias", *bias}.dtype(x.scalar_type()).shape({outputs}).contiguous();
    const PackedMatrix matrix = packed(kernel, {"linear", "weight", weight}, outputs, inputs);
    at::Tensor y = empty_tensor({rows, outputs}, x.options().dtype(y_dtype));
    if (y.numel() == 0) return y;
    const at::Tensor readable = readable_rows<T>(x);
    Matmul<T> call = product<T>(readable, matrix, y);
    call.bias = bias ? data<T>(*bias) : nullptr;
    compute(kernel, {call}, rows);
    return y;
  });
}

}  // namespace zweave::ops
