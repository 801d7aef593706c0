#include "cpu/ops/ops.h"
#include "cpu/ops/product.h"

namespace zweave::ops {

at::Tensor svf_linear(const at::Tensor& x, const at::Tensor& vt, const at::Tensor& u, const at::Tensor& scale,
                      const at::Tensor& slot, const std::optional<at::Tensor>& bias, int64_t outputs) {
  const char* op = "svf_linear";
  Argument{op, "x", x}.shape({-1, -1});
  Argument{op, "scale", scale}.dtype(at::kFloat).shape({-1, -1});
  return dispatch(op, "x", x, [&]<class T>(const TypedKernels<T>& kernel) {
    const int64_t rows = x.size(0), inputs = x.size(1), rank = scale.size(1);
    Argument{op, "slot", slot}.indices(rows, scale.size(0), "slots");
    if (bias) Argument{op, "bias", *bias}.dtype(x.scalar_type()).shape({outputs}).contiguous();
    const PackedMatrix packed_vt = packed(kernel, {op, "vt", vt}, rank, inputs);
    const PackedMatrix packed_u = packed(kernel, {op, "u", u}, outputs, rank);
    at::Tensor y = empty_tensor({rows, outputs}, x.options());
    if (y.numel() == 0) return y;
    const at::Tensor hidden = empty_rows<T>(rows, rank, x.options());

    const at::Tensor readable = readable_rows<T>(x);
    Matmul<T> first = product<T>(readable, packed_vt, hidden);
    scale_rows(first, scale, slot);
    Matmul<T> second = product<T>(hidden, packed_u, y);
    second.bias = bias ? data<T>(*bias) : nullptr;
    compute(kernel, {first, second}, rows);
    return y;
  });
}

}  // namespace zweave::ops
