// The ops of the decode kernels; bindings.cpp has their schemas, kernels/cuda_decode.py says when they serve.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "checks.h"
#include "cuda/decode_launch.h"

namespace zweave::cuda {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

// Operands of an op, checked as they are added.
class Call {
 public:
  Call(const char* op, const at::Tensor& x) : op_(op), x_(x), guard_(x.device()) {
    check("x", x, {-1, -1}, at::kBFloat16);
    int generation = 0;
    C10_CUDA_CHECK(
        cudaDeviceGetAttribute(&generation, cudaDevAttrComputeCapabilityMajor, x.device().index()));
    TORCH_CHECK_NOT_IMPLEMENTED(generation >= 8, op, ": bfloat16 kernels need sm_80 or newer, ", x.device(),
                                " is sm_", generation, "x");
    overlaps_ = generation >= 9;
    a_.tokens = size(x, 0);
    a_.inputs = size(x, 1);
  }

  Call& dense(const at::Tensor& w) {
    check("weight", w, {-1, a_.inputs}, at::kBFloat16);
    a_.w = values(w);
    a_.w_stride = stride(w);
    a_.outputs = size(w, 0);
    return *this;
  }

  Call& factors(const at::Tensor& vt, const at::Tensor& u, const at::Tensor& scale, const at::Tensor& slot) {
    check("u", u, {a_.w ? a_.outputs : -1, -1}, at::kBFloat16);
    a_.outputs = size(u, 0);
    a_.rank = size(u, 1);
    check("vt", vt, {a_.rank, a_.inputs}, at::kBFloat16);
    check("scale", scale, {-1, a_.rank}, at::kFloat);
    check("slot", slot, {a_.tokens}, at::kInt);
    a_.vt = values(vt);
    a_.vt_stride = stride(vt);
    a_.u = values(u);
    a_.u_stride = stride(u);
    a_.scale = scale.const_data_ptr<float>();
    a_.scale_stride = stride(scale);
    a_.slots = size(scale, 0);
    a_.slot = slot.const_data_ptr<int32_t>();
    return *this;
  }

  at::Tensor run(const OptionalTensor& bias) {
    if (bias) {
      check("bias", *bias, {a_.outputs}, at::kBFloat16);
      a_.bias = values(*bias);
    }
    at::Tensor y = at::empty({a_.tokens, a_.outputs}, x_.options());
    if (y.numel() == 0) return y;
    const at::Tensor x = in_line(x_);
    const at::Tensor hidden = at::empty({a_.tokens, a_.rank}, x_.options());
    a_.x = values(x);
    a_.x_stride = stride(x);
    a_.hidden = static_cast<Bf16*>(hidden.mutable_data_ptr());
    a_.y = static_cast<Bf16*>(y.mutable_data_ptr());
    C10_CUDA_CHECK(launch_decode(a_, at::cuda::getCurrentCUDAStream(), overlaps_));
    return y;
  }

 private:
  void check(const char* name, const at::Tensor& tensor, at::IntArrayRef want, at::ScalarType dtype) const {
    Argument{op_, name, tensor, x_.device()}.shape(want).dtype(dtype);
  }
  int size(const at::Tensor& tensor, int64_t dimension) const {
    const int64_t n = tensor.size(dimension);
    // Inputs are counted in chunks, outputs in blocks along y of a grid, and both with room to spare.
    TORCH_CHECK(n <= kLargest, op_, ": a dimension of ", n, " is too large, at most ", kLargest);
    return int(n);
  }
  // The stride of a single row is arbitrary.
  static int64_t stride(const at::Tensor& matrix) {
    return matrix.size(0) > 1 ? matrix.stride(0) : matrix.size(1);
  }
  static const Bf16* values(const at::Tensor& tensor) {
    return static_cast<const Bf16*>(tensor.const_data_ptr());
  }
  // The weights alone decide how a row is summed, so tokens must not stand out of line where the weights do
  // not.
  static at::Tensor in_line(const at::Tensor& x) {
    return x.size(1) % 8 || is_aligned(values(x), stride(x)) ? x : x.clone(at::MemoryFormat::Contiguous);
  }

  static constexpr int64_t kLargest = 1 << 19;

  const char* op_;
  const at::Tensor& x_;
  const c10::cuda::CUDAGuard guard_;
  bool overlaps_ = false;
  SvfOperands a_ = {};
};

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias) {
  return Call("linear", x).dense(weight).run(bias);
}

at::Tensor svf_linear(const at::Tensor& x, const at::Tensor& vt, const at::Tensor& u, const at::Tensor& scale,
                      const at::Tensor& slot, const OptionalTensor& bias) {
  return Call("svf_linear", x).factors(vt, u, scale, slot).run(bias);
}

at::Tensor svf_delta_linear(const at::Tensor& x, const at::Tensor& w, const at::Tensor& vt,
                            const at::Tensor& u, const at::Tensor& delta, const at::Tensor& slot,
                            const OptionalTensor& bias) {
  return Call("svf_delta_linear", x).dense(w).factors(vt, u, delta, slot).run(bias);
}

}  // namespace

TORCH_LIBRARY_IMPL(zweave, CUDA, m) {
  m.impl("linear_decode", linear);
  m.impl("svf_linear_decode", svf_linear);
  m.impl("svf_delta_linear_decode", svf_delta_linear);
}

}  // namespace zweave::cuda
