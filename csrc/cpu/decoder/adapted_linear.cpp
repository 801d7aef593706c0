#include "cpu/decoder/adapted_linear.h"

#include "cpu/ops/dispatch.h"

namespace zweave {
namespace {

template <class T>
const T* pointer(const std::optional<at::Tensor>& tensor) {
  return tensor ? data<T>(*tensor) : nullptr;
}

Weights weights_or_null(const std::optional<PackedMatrix>& matrix, int64_t inputs) {
  return matrix ? weights_of(*matrix, inputs) : Weights{};
}

}  // namespace

void check_linear(const AdaptedLinear& linear, at::ScalarType dtype) {
  const char* op = "AdaptedLinear";
  Argument{op, "ways", linear.ways}.dtype(at::kByte).shape({-1}).contiguous();
  const int64_t slots = linear.ways.size(0);
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

bool AdaptedLinear::has(Way way, int32_t slot) const {
  switch (way) {
    case Way::dense:
      return dense.has_value();
    case Way::delta:
      return delta.has_value();
    case Way::factored:
      return scale.has_value();
    case Way::merged:
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
      scale(pointer<float>(linear.scale)),
      delta(pointer<float>(linear.delta)),
      scale_stride(linear.scale ? linear.scale->stride(0) : 0),
      delta_stride(linear.delta ? linear.delta->stride(0) : 0),
      ways(data<uint8_t>(linear.ways)),
      supports(linear.supports ? data<int32_t>(*linear.supports) : nullptr),
      merged(linear.merged.get()),
      all_factored(all_factored && linear.scale) {}

template <class T>
Way LinearView<T>::way_of(int32_t slot) const {
  return all_factored ? Way::factored : Way(ways[slot]);
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
  const Way way = way_of(slot[row]);
  int64_t end = row + 1;
  while (end < rows && way_of(slot[end]) == way && (way != Way::merged || slot[end] == slot[row])) ++end;
  return {row, end, way};
}

template <class T>
void LinearView<T>::add_jobs(Buffer<T> x, const int32_t* slot, int64_t rows, Buffer<T> hidden, Buffer<T> y,
                             Phase<T>& first, Phase<T>& second) const {
  const Term<T> wx = {x.data, x.stride, dense, inputs, nullptr};
  for (Run run{0, 0, Way::dense}; run.end < rows;) {
    run = run_from(slot, run.end, rows);
    Matmul<T> last{};
    last.outputs = outputs;
    last.y = y.data;
    last.y_stride = y.stride;
    last.bias = bias;
    if (run.way == Way::dense || run.way == Way::merged) {
      last.terms[last.num_terms] = wx;
      if (run.way == Way::merged) {
        last.terms[last.num_terms].weights = weights_of({merged->at(slot[run.begin])}, inputs);
      }
      ++last.num_terms;
      first.add(last, run.begin, run.end);
      continue;
    }
    const bool is_delta = run.way == Way::delta;
    const int64_t kept = is_delta ? components(slot, run) : rank;
    Matmul<T> inner{};
    inner.terms[inner.num_terms++] = {x.data, x.stride, vt, inputs, x.integers};
    inner.outputs = kept;
    inner.y = hidden.data;
    inner.y_stride = hidden.stride;
    inner.scale = is_delta ? delta : scale;
    inner.scale_stride = is_delta ? delta_stride : scale_stride;
    inner.slot = slot;
    first.add(inner, run.begin, run.end);
    if (is_delta) last.terms[last.num_terms++] = wx;
    last.terms[last.num_terms++] = {hidden.data, hidden.stride, u, kept, hidden.integers};
    second.add(last, run.begin, run.end);
  }
}

template struct LinearView<float>;
template struct LinearView<bf16>;

}  // namespace zweave
