// A call of one of the linears' ops, from its tensors to its products.
#pragma once

#include "cpu/gemm/linear.h"
#include "cpu/ops/packed_matrix.h"

namespace zweave::ops {

// Operands are set before `run`, those that its mode takes.
template <class T>
class LinearCall {
 public:
  // x: [T, inputs]. Throws where the bias does not fit.
  LinearCall(const char* op, const TypedKernels<T>& kernel, const at::Tensor& x,
             const std::optional<at::Tensor>& bias, int64_t outputs);

  // w: W [outputs, inputs].
  void dense(PackedMatrix w);
  // vt: [rank, inputs]; u: [outputs, rank]; scale: [S, rank] float32, or the delta; slot: [T] int32.
  void factors(PackedMatrix vt, PackedMatrix u, const at::Tensor& scale, const at::Tensor& slot);

  // y [T, outputs], in T or float32.
  at::Tensor run(LinearMode mode, at::ScalarType y_dtype = kScalarType<T>);

 private:
  const TypedKernels<T>& kernel_;
  const at::Tensor& x_;
  PackedMatrix w_, vt_, u_;
  LinearOperands<T> a_{};
};

}  // namespace zweave::ops
