#include "cpu/decoder/adapted_linear.h"

#include <set>
#include <tuple>

#include "cpu/decoder/workspace.h"
#include "cpu/gemm/run_products.h"
#include "cpu/threads/run_team.h"

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
    const int64_t rank = scale ? scale->size(1) : delta->size(1) - rest_rank;
    check_packed(kOp, "vt", *vt, dtype, rank, inputs);
    check_packed(kOp, "u", *u, dtype, outputs, rank);
    TORCH_CHECK(!scale || (!vt->scale && !u->scale), kOp,
                ": int8 and int4 factors serve deltas alone, not scale");
    TORCH_CHECK(!delta || delta->size(1) - rest_rank <= rank, kOp, ": delta has more components than vt");
    TORCH_CHECK(!delta || dense, kOp, ": delta needs the dense weight");
  }
  TORCH_CHECK(rest_vt.has_value() == rest_u.has_value() && rest_vt.has_value() == (rest_rank > 0), kOp,
              ": the rest's vt, u and rank go together");
  if (rest_vt) {
    TORCH_CHECK(delta && !scale, kOp, ": the rest is of a delta without scale");
    check_packed(kOp, "rest_vt", *rest_vt, dtype, rest_rank, inputs);
    check_packed(kOp, "rest_u", *rest_u, dtype, outputs, rest_rank);
  }
  if (supports) Argument{kOp, "supports", *supports}.dtype(at::kInt).shape({slots}).contiguous();
  if (bias) Argument{kOp, "bias", *bias}.dtype(dtype).shape({outputs}).contiguous();
  if (pages) pages->check(dtype, outputs, inputs, slots);
}

LinearMode AdaptedLinear::mode_of(int32_t slot, bool all_factored) const {
  return all_factored && scale ? LinearMode::factored : LinearMode(data<uint8_t>(modes)[slot]);
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

void AdaptedLinear::check_slots(const at::Tensor& slot, bool all_factored) const {
  Argument{kOp, "slot", slot}.indices(slot.size(0), modes.size(0), "slots");
  const int32_t* slots = data<int32_t>(slot);
  for (const int32_t s : std::set<int32_t>(slots, slots + slot.size(0))) {
    const LinearMode mode = mode_of(s, all_factored);
    TORCH_CHECK(has(mode, s), kOp, ": slot ", s, " has mode ", int(mode), ", for which it has no weights");
  }
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
  result.delta_rank = delta ? delta->size(1) - rest_rank : 0;
  result.rest_rank = rest_rank;
  result.rank = scale ? scale->size(1) : result.delta_rank;
  if (dense) result.dense = weights_of({*dense}, inputs);
  result.vt = weights_or_null(vt, inputs);
  result.u = weights_or_null(u, result.rank);
  result.rest_vt = weights_or_null(rest_vt, inputs);
  result.rest_u = weights_or_null(rest_u, rest_rank);
  result.bias = pointer<T>(bias);
  result.scale = table(scale);
  result.delta = table(delta);
  result.modes = data<uint8_t>(modes);
  result.supports = pointer<int32_t>(supports);
  result.merged = &merged->weights;
  result.all_factored = all_factored && scale;
  if (pages) result.components = pages->template view<T>();
  return result;
}

at::Tensor AdaptedLinear::run(const at::Tensor& x, const at::Tensor& slot, bool all_factored) const {
  Argument{kOp, "x", x}.shape({-1, inputs});
  check(x.scalar_type());
  check_slots(slot, all_factored);
  return dispatch(kOp, "x", x, [&]<class T>(const TypedKernels<T>& kernel) {
    const int64_t rows = x.size(0);
    at::Tensor y = empty_tensor({rows, outputs}, x.options());
    if (y.numel() == 0) return y;
    const LinearView<T> linear = view<T>(all_factored);
    const int64_t paged = pages ? pages->components_of(slot) : 0;
    Workspace<T> space;
    const auto take = [&] {
      return std::make_tuple(space.take_both(rows, inputs),
                             Between<T>{space.take_both(rows, linear.rank),
                                        space.take_both(rows, linear.rest_rank), space.take(rows, paged)});
    };
    take();
    space.allocate(x.options());
    auto [input, between] = take();
    input.data = const_cast<T*>(data<T>(x));  // which no product writes
    input.stride = x.stride(0);
    Phase<T> phases[2];
    for (Phase<T>& phase : phases) phase.clear(rows);
    linear.add_jobs(input, data<int32_t>(slot), rows, between, {mutable_data<T>(y), y.stride(0), nullptr},
                    phases[0], phases[1]);
    run_phases(kernel, phases, [](const auto& run) { run_team(run); });
    return y;
  });
}

template LinearView<float> AdaptedLinear::view(bool) const;
template LinearView<bf16> AdaptedLinear::view(bool) const;

}  // namespace zweave
