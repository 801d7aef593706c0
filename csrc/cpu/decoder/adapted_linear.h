// A linear that the experts adapt, and the ways in which a row can pass through it.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <optional>

#include "cpu/gemm/phase.h"
#include "cpu/ops/packed_matrix.h"

namespace zweave {

// A row's way: what `ways` holds of its slot.
enum class Way : uint8_t {
  dense,     // W x
  delta,     // W x + U (delta * V^T x) over the leading components
  factored,  // U (scale * V^T x)
  merged,    // W' x, the slot's own weight
};

struct AdaptedLinear {
  int64_t inputs, outputs;
  std::optional<at::Tensor> dense;    // panels of W [outputs, inputs]
  std::optional<PackedMatrix> vt, u;  // V^T [R, inputs] and U [outputs, R]; integers serve deltas alone
  std::optional<at::Tensor> scale;    // [S, R] float32
  std::optional<at::Tensor> delta;    // [S, K] float32, K <= R
  std::optional<at::Tensor> bias;     // [outputs]
  at::Tensor ways;                    // [S] uint8
  // [S] int32, how many leading components of a slot's delta may be other than zero; all of them if absent.
  std::optional<at::Tensor> supports;
  // Slot to panels of its W' [outputs, inputs]; shared by all copies of this linear.
  std::shared_ptr<std::map<int32_t, at::Tensor>> merged = std::make_shared<std::map<int32_t, at::Tensor>>();

  bool has(Way way, int32_t slot) const;
};

// Throws unless the parts fit one another and every way that a slot takes has what it needs.
void check_linear(const AdaptedLinear& linear, at::ScalarType dtype);

// A run of rows that go the same way, under the same slot where that way is `merged`.
struct Run {
  int64_t begin, end;
  Way way;
};

// The same as pointers.
template <class T>
struct LinearView {
  int64_t inputs, outputs, rank, leading;
  Weights dense, vt, u;
  const T* bias;
  const float *scale, *delta;
  int64_t scale_stride, delta_stride;
  const uint8_t* ways;
  const int32_t* supports;
  const std::map<int32_t, at::Tensor>* merged;
  bool all_factored;  // whatever `ways` says

  LinearView(const AdaptedLinear& linear, bool all_factored);

  // Adds to `first` the products that read x, and to `second` those that wait for the first ones: hidden
  // [T, rank] holds what lies between. y is [T, outputs].
  void add_jobs(Buffer<T> x, const int32_t* slot, int64_t rows, Buffer<T> hidden, Buffer<T> y,
                Phase<T>& first, Phase<T>& second) const;

 private:
  Way way_of(int32_t slot) const;
  int64_t components(const int32_t* slot, const Run& run) const;
  Run run_from(const int32_t* slot, int64_t row, int64_t rows) const;
};

}  // namespace zweave
