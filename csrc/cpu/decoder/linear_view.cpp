#include "cpu/decoder/linear_view.h"

#include <algorithm>

namespace zweave {

template <class T>
LinearMode LinearView<T>::mode_of(int32_t slot) const {
  return all_factored ? LinearMode::factored : LinearMode(modes[slot]);
}

// As many of `most` components as are read together, of a factor with `rank` of them.
template <class T>
int64_t whole_groups(int64_t most, const Weights& u, int64_t rank) {
  // Of integers a group of components shares a scale.
  const int64_t step = u.storage == Storage::plain ? kPack<T> : u.group;
  return std::min(rank, divide_up(most, step) * step);
}

// As many components as one of the run's slots needs. Other slots have zeros there, and adding zero changes
// no bit.
template <class T>
DeltaRanks LinearView<T>::delta_ranks_of(const int32_t* slot, const Run& run) const {
  if (!supports) return {delta_rank, rest_rank};
  int64_t most = 1;
  for (int64_t t = run.begin; t < run.end; ++t) most = std::max<int64_t>(most, supports[slot[t]]);
  const int64_t beyond = std::max<int64_t>(0, most - delta_rank);
  return {whole_groups<T>(most, u, delta_rank), whole_groups<T>(beyond, rest_u, rest_rank)};
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
void LinearView<T>::add_jobs(Buffer<T> x, const int32_t* slot, int64_t rows, Between<T> between, Buffer<T> y,
                             Phase<T>& first, Phase<T>& second) const {
  LinearOperands<T> a{};
  a.x = x.data;
  a.x_stride = x.stride;
  a.x_prepared = x.prepared;
  a.inputs = inputs;
  a.outputs = outputs;
  a.slot = slot;
  a.bias = bias;
  a.y = y.data;
  a.y_stride = y.stride;
  for (Run run{0, 0, LinearMode::dense}; run.end < rows;) {
    run = run_from(slot, run.end, rows);
    const bool is_delta = run.mode == LinearMode::delta;
    a.dense = run.mode == LinearMode::merged ? merged->at(slot[run.begin]) : dense;
    const DeltaRanks ranks = is_delta ? delta_ranks_of(slot, run) : DeltaRanks{rank, 0};
    a.factors = {ranks.leading, vt, u, is_delta ? delta : scale, between.hidden};
    a.rest = {ranks.rest, rest_vt, rest_u, {delta.data + delta_rank, delta.stride}, between.rest};
    const LinearProducts<T> products = build_linear(run.mode, a);
    for (int64_t i = 0; i < products.num_first; ++i) first.add(products.first[i], run.begin, run.end);
    add_last(products.last, a, run, between.paged, first, products.num_first > 0 ? second : first, second);
  }
}

// A run's last product, which belongs to the phase `own`, or where its rows have pages to the second.
template <class T>
void LinearView<T>::add_last(const Matmul<T>& last, const LinearOperands<T>& a, Run run, Buffer<T> paged,
                             Phase<T>& first, Phase<T>& own, Phase<T>& second) const {
  if (!components) return own.add(last, run.begin, run.end);
  Phase<T>::each_block(run.begin, run.end, [&](int64_t begin, int64_t end) {
    const std::vector<int32_t> pages = components->of_rows(a.slot, begin, end);
    if (pages.empty()) return own.add(last, begin, end);
    components->add_first(first, a, pages, paged, begin, end);
    second.add(last, components->terms(pages, paged), begin, end);
  });
}

template struct LinearView<float>;
template struct LinearView<bf16>;

}  // namespace zweave
