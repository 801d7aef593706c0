#include "cpu/ops/linear_call.h"
#include "cpu/ops/ops.h"
#include "cpu/ops/pack.h"

namespace zweave::ops {

at::Tensor svf_linear(const at::Tensor& x, const at::Tensor& vt, const at::Tensor& u, const at::Tensor& scale,
                      const at::Tensor& slot, const std::optional<at::Tensor>& bias, int64_t outputs) {
  const char* op = "svf_linear";
  Argument{op, "x", x}.shape({-1, -1});
  Argument{op, "scale", scale}.dtype(at::kFloat).shape({-1, -1});
  return dispatch(op, "x", x, [&]<class T>(const TypedKernels<T>& kernel) {
    const int64_t rank = scale.size(1);
    Argument{op, "slot", slot}.indices(x.size(0), scale.size(0), "slots");
    LinearCall<T> call(op, kernel, x, bias, outputs);
    call.factors(packed(kernel, {op, "vt", vt}, rank, x.size(1)), packed(kernel, {op, "u", u}, outputs, rank),
                 scale, slot);
    return call.run(LinearMode::factored);
  });
}

}  // namespace zweave::ops
