// A linear that the experts adapt: its tensors, and the same as pointers.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <optional>

#include "cpu/gemm/linear.h"
#include "cpu/gemm/phase.h"
#include "cpu/ops/packed_matrix.h"

namespace zweave {

struct AdaptedLinear {
  int64_t inputs, outputs;
  std::optional<at::Tensor> dense;    // panels of W [outputs, inputs]
  std::optional<PackedMatrix> vt, u;  // V^T [R, inputs] and U [outputs, R]; integers serve deltas alone
  std::optional<at::Tensor> scale;    // [S, R] float32
  std::optional<at::Tensor> delta;    // [S, K] float32, K <= R
  std::optional<at::Tensor> bias;     // [outputs]
  at::Tensor modes;                   // [S] uint8, the LinearMode of each slot
  // [S] int32, how many leading components of a slot's delta may be other than zero; all of them if absent.
  std::optional<at::Tensor> supports;
  // Slot to panels of its W' [outputs, inputs]; shared by all copies of this linear.
  std::shared_ptr<std::map<int32_t, at::Tensor>> merged = std::make_shared<std::map<int32_t, at::Tensor>>();

  bool has(LinearMode mode, int32_t slot) const;
};

// Throws unless the parts fit one another and every mode has what it needs.
void check_linear(const AdaptedLinear& linear, at::ScalarType dtype);

// Neighbouring rows of one mode, and of one slot where that is `merged`.
struct Run {
  int64_t begin, end;
  LinearMode mode;
};

// The same as pointers.
template <class T>
struct LinearView {
  int64_t inputs, outputs, rank, leading;
  Weights dense, vt, u;
  const T* bias;
  SlotTable scale, delta;
  const uint8_t* modes;
  const int32_t* supports;
  const std::map<int32_t, at::Tensor>* merged;
  bool all_factored;  // whatever `modes` says

  LinearView(const AdaptedLinear& linear, bool all_factored);

  // Adds to `first` the products that read x, and to `second` those that wait for the first ones: hidden
  // [T, rank] holds what lies between. y is [T, outputs].
  void add_jobs(Buffer<T> x, const int32_t* slot, int64_t rows, Buffer<T> hidden, Buffer<T> y,
                Phase<T>& first, Phase<T>& second) const;

 private:
  LinearMode mode_of(int32_t slot) const;
  int64_t components(const int32_t* slot, const Run& run) const;
  Run run_from(const int32_t* slot, int64_t row, int64_t rows) const;
};

}  // namespace zweave
