// A linear that the experts adapt, and the three ways in which a row can pass through it.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "cpu/phase.h"

namespace zweave {

// A row's way: what `ways` holds of its slot.
enum class Way : uint8_t {
  dense,     // W x
  delta,     // W x + U (delta * V^T x) over the leading components
  factored,  // U (scale * V^T x)
};

struct AdaptedLinear {
  int64_t inputs, outputs;
  std::optional<at::Tensor> dense;  // panels of W [outputs, inputs]
  std::optional<at::Tensor> vt, u;  // panels of V^T [R, inputs] and U [outputs, R]
  std::optional<at::Tensor> scale;  // [S, R] float32
  std::optional<at::Tensor> delta;  // [S, K] float32, K <= R
  std::optional<at::Tensor> bias;   // [outputs]
  at::Tensor ways;                  // [S] uint8
};

// Throws unless the parts fit one another and every way that a slot takes has what it needs.
void check_linear(const AdaptedLinear& linear, at::ScalarType dtype);

// A run of rows that go the same way.
struct Run {
  int64_t begin, end;
  Way way;
};

// The same as pointers.
template <class T>
struct LinearView {
  int64_t inputs, outputs, rank, leading;
  const T *dense, *vt, *u, *bias;
  int64_t u_stride;
  const float *scale, *delta;
  int64_t scale_stride, delta_stride;
  const uint8_t* ways;

  explicit LinearView(const AdaptedLinear& linear);

  // Adds to `first` the products that read x, and to `second` those that wait for the first ones: hidden
  // [T, rank] holds what lies between. y is [T, outputs].
  void add_jobs(Buffer<T> x, const int32_t* slot, int64_t rows, Buffer<T> hidden, Buffer<T> y,
                Phase<T>& first, Phase<T>& second) const;

 private:
  Run run_from(const int32_t* slot, int64_t row, int64_t rows) const;
};

}  // namespace zweave
