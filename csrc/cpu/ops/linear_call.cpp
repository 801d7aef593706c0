#include "cpu/ops/linear_call.h"

#include "cpu/gemm/run_products.h"
#include "cpu/threads/run_team.h"

namespace zweave::ops {
namespace {

// An uninitialised [rows, width] whose rows do not compete for cache lines.
template <class T>
at::Tensor empty_rows(int64_t rows, int64_t width, const at::TensorOptions& options) {
  return empty_tensor({rows, row_stride<T>(width)}, options).slice(1, 0, width);
}

// x, or a copy of it whose rows do not compete for cache lines.
template <class T>
at::Tensor readable_rows(const at::Tensor& x) {
  // A few rows fit the associativity of the cache as they are.
  if (x.size(0) <= 4 || row_stride<T>(x.stride(0)) == x.stride(0)) return x;
  return empty_rows<T>(x.size(0), x.size(1), x.options()).copy_(x);
}

// Room for what every thread prepares of rows [rows, inputs], for a product with `weight`; undefined where
// that wants nothing.
at::Tensor room_for_prepared(const PackedMatrix& weight, int64_t rows, int64_t inputs) {
  if (!weight.panels.defined() || !wants_prepared(storage_of(weight.panels))) return {};
  const int64_t bytes = PreparedRows(nullptr, inputs).bytes(rows);
  return empty_tensor({at::get_num_threads(), bytes}, weight.panels.options().dtype(at::kChar));
}

char* pointer(const at::Tensor& room) { return room.defined() ? mutable_data<char>(room) : nullptr; }

}  // namespace

template <class T>
LinearCall<T>::LinearCall(const char* op, const TypedKernels<T>& kernel, const at::Tensor& x,
                          const std::optional<at::Tensor>& bias, int64_t outputs)
    : kernel_(kernel), x_(x) {
  if (bias) Argument{op, "bias", *bias}.dtype(kScalarType<T>).shape({outputs}).contiguous();
  a_.inputs = x.size(1);
  a_.outputs = outputs;
  a_.bias = bias ? data<T>(*bias) : nullptr;
}

template <class T>
void LinearCall<T>::dense(PackedMatrix w) {
  w_ = std::move(w);
  a_.dense = weights_of(w_, a_.inputs);
}

template <class T>
void LinearCall<T>::factors(PackedMatrix vt, PackedMatrix u, const at::Tensor& scale,
                            const at::Tensor& slot) {
  vt_ = std::move(vt);
  u_ = std::move(u);
  const int64_t rank = scale.size(1);
  a_.factors = {
      rank, weights_of(vt_, a_.inputs), weights_of(u_, rank), {data<float>(scale), scale.stride(0)}, {}};
  a_.slot = data<int32_t>(slot);
}

template <class T>
at::Tensor LinearCall<T>::run(LinearMode mode, at::ScalarType y_dtype) {
  const int64_t rows = x_.size(0);
  at::Tensor y = empty_tensor({rows, a_.outputs}, x_.options().dtype(y_dtype));
  if (y.numel() == 0) return y;
  if (y_dtype == kScalarType<T>) {
    a_.y = mutable_data<T>(y);
  } else {
    a_.y_f32 = mutable_data<float>(y);
  }
  a_.y_stride = y.stride(0);
  const at::Tensor x = readable_rows<T>(x_);
  a_.x = data<T>(x);
  a_.x_stride = x.stride(0);
  at::Tensor hidden, hidden_prepared, x_prepared = room_for_prepared(w_, rows, a_.inputs);
  if (mode != LinearMode::dense) {
    const int64_t rank = a_.factors.rank;
    hidden = empty_rows<T>(rows, rank, x.options());
    if (!x_prepared.defined()) x_prepared = room_for_prepared(vt_, rows, a_.inputs);
    hidden_prepared = room_for_prepared(u_, rows, rank);
    a_.factors.hidden = {mutable_data<T>(hidden), hidden.stride(0), pointer(hidden_prepared)};
    a_.zero_base = mode == LinearMode::delta;
  }
  a_.x_prepared = pointer(x_prepared);
  run_products(kernel_, build_linear(mode, a_), rows, [](const auto& run) { run_team(run); });
  return y;
}

template class LinearCall<float>;
template class LinearCall<bf16>;

}  // namespace zweave::ops
