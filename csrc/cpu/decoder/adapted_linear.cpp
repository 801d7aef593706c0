#include "cpu/decoder/adapted_linear.h"

namespace zweave {
namespace {

constexpr const char* kOp = "AdaptedLinear";

template <class T>
const T* pointer(const std::optional<at::Tensor>& tensor) {
  return tensor ? data<T>(*tensor) : nullptr;
}

SlotTable table(const std::optional<at::Tensor>& tensor) {
  return tensor ? SlotTable{data<float>(*tensor), tensor->stride(0)} : SlotTable{};
}

Weights weights_or_null(const std::optional<PackedMatrix>& matrix, int64_t inputs) {
  return matrix ? weights_of(*matrix, inputs) : Weights{};
}

}  // namespace

void AdaptedLinear::check(at::ScalarType dtype) const {
  Argument{kOp, "modes", modes}.dtype(at::kByte).shape({-1}).contiguous();
  const int64_t slots = modes.size(0);
  TORCH_CHECK(dense || scale, kOp, ": it needs the dense weight or the factors");
  TORCH_CHECK(vt.has_value() == u.has_value(), kOp, ": vt and u go together");
  if (dense) check_packed(kOp, "dense", {*dense}, dtype, outputs, inputs);
  for (const auto* table : {&scale, &delta}) {
    if (!*table) continue;
    TORCH_CHECK(vt, kOp, ": scale and delta need vt and u");
    Argument{kOp, "scale or delta", **table}.dtype(at::kFloat).shape({slots, -1});
  }
  if (vt) {
    // The rank that the factors are packed for: all of it, or as many components as the delta keeps.
    TORCH_CHECK(scale || delta, kOp, ": vt and u need scale or delta");
    const int64_t rank = scale ? scale->size(1) : delta->size(1);
    check_packed(kOp, "vt", *vt, dtype, rank, inputs);
    check_packed(kOp, "u", *u, dtype, outputs, rank);
    TORCH_CHECK(!scale || (!vt->scale && !u->scale), kOp,
                ": int8 and int4 factors serve deltas alone, not scale");
    TORCH_CHECK(!delta || delta->size(1) <= rank, kOp, ": delta has more components than vt");
    TORCH_CHECK(!delta || dense, kOp, ": delta needs the dense weight");
  }
  if (supports) Argument{kOp, "supports", *supports}.dtype(at::kInt).shape({slots}).contiguous();
  if (bias) Argument{kOp, "bias", *bias}.dtype(dtype).shape({outputs}).contiguous();
}

bool AdaptedLinear::has(LinearMode mode, int32_t slot) const {
  switch (mode) {
    case LinearMode::dense:
      return dense.has_value();
    case LinearMode::delta:
      return delta.has_value();
    case LinearMode::factored:
      return scale.has_value();
    case LinearMode::merged:
      return merged->panels.count(slot) > 0;
  }
  return false;
}

void AdaptedLinear::set_merged(int32_t slot, const std::optional<at::Tensor>& panels) {
  merged->panels.erase(slot);
  merged->weights.erase(slot);
  if (!panels) return;
  merged->panels[slot] = *panels;
  merged->weights[slot] = weights_of({*panels}, inputs);
}

template <class T>
LinearView<T> AdaptedLinear::view(bool all_factored) const {
  LinearView<T> result{};
  result.inputs = inputs;
  result.outputs = outputs;
  result.delta_rank = delta ? delta->size(1) : 0;
  result.rank = scale ? scale->size(1) : result.delta_rank;
  if (dense) result.dense = weights_of({*dense}, inputs);
  result.vt = weights_or_null(vt, inputs);
  result.u = weights_or_null(u, result.rank);
  result.bias = pointer<T>(bias);
  result.scale = table(scale);
  result.delta = table(delta);
  result.modes = data<uint8_t>(modes);
  result.supports = pointer<int32_t>(supports);
  result.merged = &merged->weights;
  result.all_factored = all_factored && scale;
  return result;
}

template LinearView<float> AdaptedLinear::view(bool) const;
template LinearView<bf16> AdaptedLinear::view(bool) const;

}  // namespace zweave
