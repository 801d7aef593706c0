#include "cpu/decoder/linear_view.h"

#include <algorithm>

namespace zweave {

template <class T>
LinearMode LinearView<T>::mode_of(int32_t slot) const {
  return all_factored ? LinearMode::factored : LinearMode(modes[slot]);
}

// Components of a run's delta: the most that one of its slots needs. Other slots have zeros there, and adding
// zero changes no bit.
template <class T>
int64_t LinearView<T>::delta_rank_of(const int32_t* slot, const Run& run) const {
  // Of integers a group of components shares a scale: they are taken whole.
  if (!supports || u.storage != Storage::plain) return delta_rank;
  int64_t most = 1;
  for (int64_t t = run.begin; t < run.end; ++t) most = std::max<int64_t>(most, supports[slot[t]]);
  return std::min(delta_rank, divide_up(most, kPack<T>) * kPack<T>);
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
    a.dense = run.mode == LinearMode::merged ? merged->at(slot[run.begin]) : dense;
    a.rank = is_delta ? delta_rank_of(slot, run) : rank;
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
