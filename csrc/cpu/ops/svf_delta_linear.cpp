#include <algorithm>

#include "cpu/ops/linear_call.h"
#include "cpu/ops/ops.h"
#include "cpu/ops/pack.h"

namespace zweave::ops {

at::Tensor svf_delta_linear(const at::Tensor& x, const at::Tensor& w, const at::Tensor& vt,
                            const at::Tensor& u, const at::Tensor& delta, const at::Tensor& slot,
                            const std::optional<at::Tensor>& bias, int64_t outputs,
                            const std::optional<at::Tensor>& vt_scale,
                            const std::optional<at::Tensor>& u_scale, int64_t vt_group, int64_t u_group) {
  const char* op = "svf_delta_linear";
  Argument{op, "x", x}.shape({-1, -1});
  Argument{op, "delta", delta}.dtype(at::kFloat).shape({-1, -1});
  return dispatch(op, "x", x, [&]<class T>(const TypedKernels<T>& kernel) {
    const int64_t rows = x.size(0), inputs = x.size(1), rank = delta.size(1);
    Argument{op, "slot", slot}.indices(rows, delta.size(0), "slots");
    LinearCall<T> call(op, kernel, x, bias, outputs);
    call.dense(packed(kernel, {op, "w", w}, outputs, inputs));
    call.factors(packed_factor(kernel, {op, "vt", vt}, vt_scale, vt_group, rank, inputs),
                 packed_factor(kernel, {op, "u", u}, u_scale, u_group, outputs, rank), delta, slot);
    const int32_t* slots = data<int32_t>(slot);
    const bool adapted = std::any_of(slots, slots + rows, [](int32_t s) { return s != 0; });
    return call.run(adapted && rank > 0 ? LinearMode::delta : LinearMode::dense);
  });
}

}  // namespace zweave::ops
