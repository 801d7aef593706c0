#include "cpu/ops/ops.h"
#include "cpu/ops/product.h"

namespace zweave::ops {

at::Tensor svf_delta_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& vt,
                            const at::Tensor& u, const at::Tensor& delta, const at::Tensor& slot,
                            const std::optional<at::Tensor>& bias, int64_t outputs,
                            const std::optional<at::Tensor>& vt_scale,
                            const std::optional<at::Tensor>& u_scale, int64_t vt_group, int64_t u_group) {
  const char* op = "svf_delta_linear";
  Argument{op, "x", x}.shape({-1, -1});
  Argument{op, "delta", delta}.dtype(at::kFloat).shape({-1, -1});
  return dispatch(op, "x", x, [&]<class T>(const TypedKernels<T>& kernel) {
    const int64_t rows = x.size(0), inputs = x.size(1), kept = delta.size(1);
    Argument{op, "slot", slot}.indices(rows, delta.size(0), "slots");
    if (bias) Argument{op, "bias", *bias}.dtype(x.scalar_type()).shape({outputs}).contiguous();
    const PackedMatrix packed_w = packed(kernel, {op, "w", weight}, outputs, inputs);
    const PackedMatrix packed_vt = packed_factor(kernel, {op, "vt", vt}, vt_scale, vt_group, kept, inputs);
    const PackedMatrix packed_u = packed_factor(kernel, {op, "u", u}, u_scale, u_group, outputs, kept);
    at::Tensor y = empty_tensor({rows, outputs}, x.options());
    if (y.numel() == 0) return y;
    const at::Tensor readable = readable_rows<T>(x);
    Matmul<T> product_of_w = product<T>(readable, packed_w, y);
    product_of_w.bias = bias ? data<T>(*bias) : nullptr;
    const int32_t* slots = data<int32_t>(slot);
    const bool adapted = std::any_of(slots, slots + rows, [](int32_t s) { return s != 0; });
    if (!adapted || kept == 0) {
      compute(kernel, {product_of_w}, rows);
      return y;
    }
    const at::Tensor hidden = empty_rows<T>(rows, kept, x.options());
    const at::Tensor x_integers = room_for_integers(packed_vt, rows, inputs);
    const at::Tensor hidden_integers = room_for_integers(packed_u, rows, kept);
    Matmul<T> inner = product<T>(readable, packed_vt, hidden, x_integers);
    scale_rows(inner, delta, slot);
    // The base's rows take W x alone, whatever row 0 of the table holds.
    inner.zero_base = true;
    add_term(product_of_w, hidden, packed_u, hidden_integers);
    compute(kernel, {inner, product_of_w}, rows);
    return y;
  });
}

}  // namespace zweave::ops
