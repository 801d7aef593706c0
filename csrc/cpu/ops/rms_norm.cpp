#include <ATen/Parallel.h>

#include "cpu/ops/dispatch.h"
#include "cpu/ops/ops.h"

namespace zweave::ops {
namespace {

at::Tensor norm(const char* op, const at::Tensor& x, const at::Tensor* residual, const at::Tensor& weight,
                double eps) {
  Argument{op, "x", x}.shape({-1, -1});
  return dispatch(op, "x", x, [&]<class T>(const TypedKernels<T>& kernel) {
    const int64_t rows = x.size(0), width = x.size(1);
    if (residual) Argument{op, "residual", *residual}.dtype(at::kFloat).shape(x.sizes()).rows_disjoint();
    const bool plain = weight.scalar_type() == at::kFloat;
    Argument{op, "weight", weight}.dtype(plain ? at::kFloat : x.scalar_type()).shape({width}).contiguous();
    at::Tensor y = empty_tensor({rows, width}, x.options());
    if (y.numel() == 0) return y;
    Norm<T> call{};
    call.x = data<T>(x);
    call.x_stride = x.stride(0);
    if (residual) {
      call.residual = mutable_data<float>(*residual);
      call.residual_stride = residual->stride(0);
    }
    if (plain) {
      call.weight_f32 = data<float>(weight);
    } else {
      call.weight = data<T>(weight);
    }
    call.y = mutable_data<T>(y);
    call.y_stride = width;
    call.width = width;
    call.eps = float(eps);
    at::parallel_for(0, rows, row_grain(width),
                     [&](int64_t begin, int64_t end) { kernel.norm(call, begin, end); });
    return y;
  });
}

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return norm("rms_norm", x, nullptr, weight, eps);
}

at::Tensor add_rms_norm(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
                        double eps) {
  return norm("add_rms_norm", x, &residual, weight, eps);
}

}  // namespace zweave::ops
