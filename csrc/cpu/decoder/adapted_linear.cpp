#include "cpu/decoder/adapted_linear.h"

#include "cpu/ops/dispatch.h"

namespace zweave {
namespace {

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

void check_linear(const AdaptedLinear& linear, at::ScalarType dtype) {
  const char* op = "AdaptedLinear";
  Argument{op, "ways", linear.modes}.dtype(at::kByte).shape({-1}).contiguous();
  const int64_t slots = linear.modes.size(0);
  TORCH_CHECK(linear.dense || linear.scale, op, ": it needs the dense weight or the factors");
  TORCH_CHECK(linear.vt.has_value() == linear.u.has_value(), op, ": vt and u go together");
  if (linear.dense) check_packed(op, "dense", {*linear.dense}, dtype, linear.outputs, linear.inputs);
  for (const auto* table : {&linear.scale, &linear.delta}) {
    if (!*table) continue;
    TORCH_CHECK(linear.vt, op, ": scale and delta need vt and u");
    Argument{op, "scale or delta", **table}.dtype(at::kFloat).shape({slots, -1});
  }
  if (linear.vt) {
    // The rank that the factors are packed for: all of it, or as many components as the delta keeps.
    TORCH_CHECK(linear.scale || linear.delta, op, ": vt and u need scale or delta");
    const int64_t rank = linear.scale ? linear.scale->size(1) : linear.delta->size(1);
    check_packed(op, "vt", *linear.vt, dtype, rank, linear.inputs);
    check_packed(op, "u", *linear.u, dtype, linear.outputs, rank);
    TORCH_CHECK(!linear.scale || (!linear.vt->scale && !linear.u->scale), op,
                ": int8 and int4 factors serve deltas alone, not scale");
    TORCH_CHECK(!linear.delta || linear.delta->size(1) <= rank, op, ": delta has more components than vt");
    TORCH_CHECK(!linear.delta || linear.dense, op, ": delta needs the dense weight");
  }
  if (linear.supports) Argument{op, "supports", *linear.supports}.dtype(at::kInt).shape({slots}).contiguous();
  if (linear.bias) Argument{op, "bias", *linear.bias}.dtype(dtype).shape({linear.outputs}).contiguous();
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
      return merged->count(slot) > 0;
  }
  return false;
}

template <class T>
LinearView<T>::LinearView(const AdaptedLinear& linear, bool all_factored)
    : inputs(linear.inputs),
      outputs(linear.outputs),
      rank(linear.scale   ? linear.scale->size(1)
           : linear.delta ? linear.delta->size(1)
                          : 0),
      leading(linear.delta ? linear.delta->size(1) : 0),
      dense(linear.dense ? weights_of({*linear.dense}, inputs) : Weights{}),
      vt(weights_or_null(linear.vt, inputs)),
      u(weights_or_null(linear.u, rank)),
      bias(pointer<T>(linear.bias)),
      scale(table(linear.scale)),
      delta(table(linear.delta)),
      modes(data<uint8_t>(linear.modes)),
      supports(linear.supports ? data<int32_t>(*linear.supports) : nullptr),
      merged(linear.merged.get()),
      all_factored(all_factored && linear.scale) {}

template <class T>
LinearMode LinearView<T>::mode_of(int32_t slot) const {
  return all_factored ? LinearMode::factored : LinearMode(modes[slot]);
}

// Components of a run's delta: the most that a slot of it needs. What the others need less of them is zero,
// and adding zero changes no bit.
template <class T>
int64_t LinearView<T>::components(const int32_t* slot, const Run& run) const {
  // Integers come under scales that whole shares of inputs have in common.
  if (!supports || u.storage != Storage::plain) return leading;
  int64_t most = 1;
  for (int64_t t = run.begin; t < run.end; ++t) most = std::max<int64_t>(most, supports[slot[t]]);
  return std::min(leading, divide_up(most, kGroup<T>) * kGroup<T>);
}

template <class T>
Run LinearView<T>::run_from(const int32_t* slot, int64_t row, int64_t rows) const {
  const LinearMode mode = mode_of(slot[row]);
  const auto joins = [&](int32_t other) {
    return mode_of(other) == mode && (mode != LinearMode::merged || other == slot[row]);
  };
  int64_t end = row + 1;
  while (end < rows && joins(slot[end])) ++end;
  return {row, end, mode};
}

template <class T>
void LinearView<T>::add_jobs(Buffer<T> x, const int32_t* slot, int64_t rows, Buffer<T> hidden, Buffer<T> y,
                             Phase<T>& first, Phase<T>& second) const {
  LinearOperands<T> a{};
  a.x = x.data;
  a.x_stride = x.stride;
  a.x_integers = x.integers;
  a.inputs = inputs;
  a.outputs = outputs;
  a.vt = vt;
  a.u = u;
  a.slot = slot;
  a.hidden = hidden;
  a.bias = bias;
  a.y = y.data;
  a.y_stride = y.stride;
  for (Run run{0, 0, LinearMode::dense}; run.end < rows;) {
    run = run_from(slot, run.end, rows);
    const bool is_delta = run.mode == LinearMode::delta;
    a.dense = run.mode == LinearMode::merged ? weights_of({merged->at(slot[run.begin])}, inputs) : dense;
    a.rank = is_delta ? components(slot, run) : rank;
    a.scale = is_delta ? delta : scale;
    const LinearProducts<T> products = build_linear(run.mode, a);
    for (int64_t i = 0; i < products.count; ++i) {
      (i == 0 ? first : second).add(products.product[i], run.begin, run.end);
    }
  }
}

template struct LinearView<float>;
template struct LinearView<bf16>;

}  // namespace zweave
