#include "cpu/ops/linear_call.h"
#include "cpu/ops/ops.h"
#include "cpu/ops/pack.h"

namespace zweave::ops {

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                  int64_t outputs, std::optional<at::ScalarType> out_dtype) {
  const char* op = "linear";
  Argument{op, "x", x}.shape({-1, -1});
  const at::ScalarType y_dtype = out_dtype.value_or(x.scalar_type());
  TORCH_CHECK(y_dtype == x.scalar_type() || y_dtype == at::kFloat,
              "linear: out_dtype must be float32 or the dtype of x, not ", y_dtype);
  return dispatch(op, "x", x, [&]<class T>(const TypedKernels<T>& kernel) {
    LinearCall<T> call(op, kernel, x, bias, outputs);
    call.dense(packed(kernel, {op, "weight", weight}, outputs, x.size(1)));
    return call.run(LinearMode::dense, y_dtype);
  });
}

}  // namespace zweave::ops
