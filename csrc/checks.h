// Checks of an op's tensors, on a CPU and on CUDA. An error names the op and the argument.
#pragma once

#include <ATen/core/Tensor.h>

namespace zweave {

// A tensor of an op's call; what is asked of it is chained: Argument{op, "x", x}.shape({-1,
// 8}).dtype(at::kFloat).
struct Argument {
  const char* op;
  const char* name;
  const at::Tensor& tensor;
  at::Device device = at::kCPU;  // where it must lie

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
    TORCH_CHECK(tensor.scalar_type() == want && tensor.device() == device, op, ": ", name, " must be ", want,
                " on ", device, ", not ", tensor.scalar_type(), " on ", tensor.device());
    return *this;
  }
  const Argument& contiguous() const {
    TORCH_CHECK(tensor.is_contiguous(), op, ": ", name, " must be contiguous");
    return *this;
  }
  // [T, heads, head_size]: there may be gaps between tokens, but not within one.
  const Argument& contiguous_tokens() const {
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
  // [count] on a CPU with 0 <= value < limit; int32, or as the caller says.
  template <class Index = int32_t>
  const Argument& indices(int64_t count, int64_t limit, const char* what) const {
    dtype(c10::CppTypeToScalarType<Index>::value).shape({count}).contiguous();
    const Index* value = tensor.const_data_ptr<Index>();
    for (int64_t i = 0; i < count; ++i) {
      TORCH_CHECK(value[i] >= 0 && value[i] < limit, op, ": ", name, "[", i, "] is ", value[i],
                  ", outside the ", limit, " ", what);
    }
    return *this;
  }
};

}  // namespace zweave
