// What the entry points share: checks that name the op, and the step from a tensor's dtype to a type.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "cpu/isa/isa.h"

namespace zweave {

// A tensor of an op's call, with the names to complain under.
struct Argument {
  const char* op;
  const char* name;
  const at::Tensor& tensor;

  // -1 stands for any size. Values of the last dimension must lie side by side.
  const Argument& shape(at::IntArrayRef want) const {
    bool fits = tensor.dim() == int64_t(want.size());
    for (size_t i = 0; fits && i < want.size(); ++i) fits = want[i] < 0 || want[i] == tensor.size(i);
    TORCH_CHECK(fits, op, ": ", name, " must have shape ", want, " (-1: any), not ", tensor.sizes());
    const int64_t last = tensor.dim() - 1;
    TORCH_CHECK(tensor.numel() == 0 || tensor.size(last) == 1 || tensor.stride(last) == 1, op, ": ", name,
                " must be contiguous in its last dimension");
    return *this;
  }
  const Argument& dtype(at::ScalarType want) const {
    TORCH_CHECK(tensor.is_cpu(), op, ": ", name, " must be on the CPU, not on ", tensor.device());
    TORCH_CHECK(tensor.scalar_type() == want, op, ": ", name, " must be ", want, ", not ",
                tensor.scalar_type());
    return *this;
  }
  const Argument& contiguous() const {
    TORCH_CHECK(tensor.is_contiguous(), op, ": ", name, " must be contiguous");
    return *this;
  }
  // [T, heads, head_size] whose tokens may lie apart, but not their heads.
  const Argument& tokens_apart() const {
    TORCH_CHECK(tensor.numel() == 0 || tensor.size(1) == 1 || tensor.stride(1) == tensor.size(2), op, ": ",
                name, " must be contiguous within a token");
    return *this;
  }
  const Argument& rows_disjoint() const {
    const int64_t row = tensor.numel() == 0 ? 0 : tensor.numel() / tensor.size(0);
    TORCH_CHECK(tensor.numel() == 0 || tensor.size(0) == 1 || tensor.stride(0) >= row, op, ": rows of ", name,
                " must not overlap, they are written");
    return *this;
  }
  // int32 [T] with 0 <= value < limit.
  const Argument& indices(int64_t tokens, int64_t limit, const char* what) const {
    dtype(at::kInt).shape({tokens}).contiguous();
    const int32_t* value = tensor.const_data_ptr<int32_t>();
    for (int64_t t = 0; t < tokens; ++t) {
      TORCH_CHECK(value[t] >= 0 && value[t] < limit, op, ": ", name, "[", t, "] is ", value[t],
                  ", outside the ", limit, " ", what);
    }
    return *this;
  }
};

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

// Calls run(kernels of the tensor's dtype).
template <class Run>
auto dispatch(const char* op, const char* name, const at::Tensor& tensor, Run run) {
  const bool is_bf16 = tensor.scalar_type() == at::kBFloat16;
  TORCH_CHECK(is_bf16 || tensor.scalar_type() == at::kFloat, op, ": ", name,
              " must be bfloat16 or float32, not ", tensor.scalar_type());
  return is_bf16 ? run(kernels().b16) : run(kernels().f32);
}

// Rows of `width` values a thread must have to be worth waking.
inline int64_t row_grain(int64_t width) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width)); }

}  // namespace zweave
