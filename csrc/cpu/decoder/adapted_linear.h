// A linear that the experts adapt, as the tensors that Python holds; kernels/adapted_linear.py has the
// formulas.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <optional>

#include "cpu/decoder/linear_view.h"
#include "cpu/decoder/page_tensors.h"
#include "cpu/ops/packed_matrix.h"

namespace zweave {

// The weights that single slots have of their own.
struct MergedWeights {
  std::map<int32_t, at::Tensor> panels;
  std::map<int32_t, Weights> weights;  // the same as pointers
};

struct AdaptedLinear {
  int64_t inputs, outputs;
  std::optional<at::Tensor> dense;    // panels of W [outputs, inputs]
  std::optional<PackedMatrix> vt, u;  // V^T [R, inputs] and U [outputs, R]; integers serve deltas alone
  std::optional<at::Tensor> scale;    // [S, R] float32
  std::optional<at::Tensor> delta;    // [S, K] float32, K <= R
  // The last `rest_rank` of the K components, where these have factors of their own.
  int64_t rest_rank;
  std::optional<PackedMatrix> rest_vt, rest_u;
  std::optional<at::Tensor> bias;  // [outputs]
  at::Tensor modes;                // [S] uint8, the LinearMode of each slot
  // [S] int32, how many leading components of a slot's delta can differ from 0; all of them if absent.
  std::optional<at::Tensor> supports;
  std::optional<PageTensors> pages;  // of components that single slots bring along
  // Shared by all copies of this linear.
  std::shared_ptr<MergedWeights> merged = std::make_shared<MergedWeights>();

  // Throws unless the parts fit one another.
  void check(at::ScalarType dtype) const;

  // The mode of a slot. all_factored: factored if there are factors.
  LinearMode mode_of(int32_t slot, bool all_factored) const;

  // Whether there are weights for a slot in a mode.
  bool has(LinearMode mode, int32_t slot) const;

  // Gives a slot panels of a W' [outputs, inputs], or takes them away.
  void set_merged(int32_t slot, const std::optional<at::Tensor>& panels);

  // y [T, outputs] of x [T, inputs] and slot [T] int32: what a decoder computes, by itself.
  at::Tensor run(const at::Tensor& x, const at::Tensor& slot, bool all_factored) const;

  // The same as pointers. all_factored: every row is computed in factored mode if there are factors.
  template <class T>
  LinearView<T> view(bool all_factored) const;

 private:
  void check_slots(const at::Tensor& slot, bool all_factored) const;
};

}  // namespace zweave
