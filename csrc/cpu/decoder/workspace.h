// Memory for what lies between products.
#pragma once

#include <ATen/Parallel.h>

#include "cpu/gemm/linear.h"
#include "cpu/gemm/prepared_rows.h"
#include "cpu/ops/dispatch.h"

namespace zweave {

// The buffers of a step, one after the other in one tensor; every one begins on a cache line.
template <class T>
class Workspace {
 public:
  // Before `allocate` this measures, afterwards it hands out memory.
  Buffer<T> take(int64_t rows, int64_t width) {
    return {reserve(rows * row_stride<T>(width)), row_stride<T>(width), nullptr};
  }
  // The same with room for what is prepared of the rows.
  Buffer<T> take_both(int64_t rows, int64_t width) {
    Buffer<T> buffer = take(rows, width);
    const int64_t bytes = at::get_num_threads() * PreparedRows(nullptr, width).bytes(rows);
    buffer.prepared = reinterpret_cast<char*>(reserve(divide_up(bytes, sizeof(T))));
    return buffer;
  }
  void allocate(const at::TensorOptions& options) {
    memory_ = empty_tensor({used_ + 64}, options);
    const auto address = reinterpret_cast<uintptr_t>(memory_.mutable_data_ptr());
    base_ = reinterpret_cast<T*>((address + 63) / 64 * 64);
    used_ = 0;
  }

 private:
  T* reserve(int64_t values) {
    T* at = base_ ? base_ + used_ : nullptr;
    used_ += divide_up(values, 64) * 64;
    return at;
  }

  at::Tensor memory_;
  T* base_ = nullptr;
  int64_t used_ = 0;
};

}  // namespace zweave
