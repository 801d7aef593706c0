// A linear that the experts adapt, as pointers.
#pragma once

#include <map>

#include "cpu/gemm/linear.h"
#include "cpu/gemm/phase.h"

namespace zweave {

// Neighbouring rows of one mode, and of one slot where that is `merged`.
struct Run {
  int64_t begin, end;
  LinearMode mode;
};

template <class T>
struct LinearView {
  int64_t inputs, outputs, rank;
  Weights dense, vt, u;  // W [outputs, inputs], V^T [rank, inputs], U [outputs, rank]
  const T* bias;         // [outputs], or null
  SlotTable scale;       // [S, rank]
  SlotTable delta;       // [S, delta_rank]
  int64_t delta_rank;    // leading components that deltas have
  const uint8_t* modes;  // [S], the LinearMode of each slot
  const int32_t*
      supports;  // [S], how many leading components of a slot's delta can differ from 0, or null: all
  const std::map<int32_t, Weights>* merged;  // W' [outputs, inputs] of slots that have one
  bool all_factored;                         // whatever `modes` says

  // Adds the products that read x to `first`, and those that wait for their results to `second`.
  // x: [T, inputs]; hidden: [T, rank], for what lies between; y: [T, outputs].
  void add_jobs(Buffer<T> x, const int32_t* slot, int64_t rows, Buffer<T> hidden, Buffer<T> y,
                Phase<T>& first, Phase<T>& second) const;

 private:
  LinearMode mode_of(int32_t slot) const;
  int64_t delta_rank_of(const int32_t* slot, const Run& run) const;
  Run run_from(const int32_t* slot, int64_t row, int64_t rows) const;
};

}  // namespace zweave
