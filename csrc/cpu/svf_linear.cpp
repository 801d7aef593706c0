#include <torch/library.h>

#include "cpu/product.h"

namespace zweave {
namespace {

at::Tensor svf_linear(const at::Tensor& x, const at::Tensor& vt, const at::Tensor& u, const at::Tensor& scale,
                      const at::Tensor& slot, const std::optional<at::Tensor>& bias, int64_t outputs) {
  const char* op = "svf_linear";
  Argument{op, "x", x}.shape({-1, -1});
  Argument{op, "scale", scale}.dtype(at::kFloat).shape({-1, -1});
  return dispatch(op, "x", x, [&]<class T>(const TypedKernels<T>& kernel) {
    const int64_t rows = x.size(0), inputs = x.size(1), rank = scale.size(1);
    Argument{op, "slot", slot}.indices(rows, scale.size(0), "slots");
    if (bias) Argument{op, "bias", *bias}.dtype(x.scalar_type()).shape({outputs}).contiguous();
    const at::Tensor vt_panels = panels_of(kernel, {op, "vt", vt}, rank, inputs);
    const at::Tensor u_panels = panels_of(kernel, {op, "u", u}, outputs, rank);
    at::Tensor y = at::empty({rows, outputs}, x.options());
    if (y.numel() == 0) return y;
    const at::Tensor hidden = at::empty({rows, rank}, x.options());

    Matmul<T> first{};
    first.x = data<T>(x);
    first.x_stride = x.stride(0);
    first.weight = data<T>(vt_panels);
    first.inputs = inputs;
    first.outputs = rank;
    first.y = mutable_data<T>(hidden);
    first.y_stride = rank;
    first.scale = data<float>(scale);
    first.scale_stride = scale.stride(0);
    first.slot = data<int32_t>(slot);
    multiply(kernel, first, rows);

    Matmul<T> second{};
    second.x = data<T>(hidden);
    second.x_stride = rank;
    second.weight = data<T>(u_panels);
    second.inputs = rank;
    second.outputs = outputs;
    second.y = mutable_data<T>(y);
    second.y_stride = outputs;
    second.bias = bias ? data<T>(*bias) : nullptr;
    multiply(kernel, second, rows);
    return y;
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(zweave, CPU, m) { m.impl("svf_linear", svf_linear); }

}  // namespace zweave
