// From a tensor to what kernels take: its dtype as a type, its values as a pointer.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>

#include "checks.h"
#include "cpu/isa/isa.h"

namespace zweave {

template <class T>
constexpr at::ScalarType kScalarType = sizeof(T) == 2 ? at::kBFloat16 : at::kFloat;

template <class T>
const T* data(const at::Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* mutable_data(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// at::empty, whose header alone would double what a file of ops takes to compile.
at::Tensor empty_tensor(at::IntArrayRef shape, const at::TensorOptions& options);

// Calls run(kernels of the tensor's dtype).
template <class Run>
auto dispatch(const char* op, const char* name, const at::Tensor& tensor, Run run) {
  const bool is_bf16 = tensor.scalar_type() == at::kBFloat16;
  TORCH_CHECK(is_bf16 || tensor.scalar_type() == at::kFloat, op, ": ", name,
              " must be bfloat16 or float32, not ", tensor.scalar_type());
  return is_bf16 ? run(kernels().b16) : run(kernels().f32);
}

// Rows of `width` values that are enough work to wake a thread for.
inline int64_t row_grain(int64_t width) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width)); }

}  // namespace zweave
