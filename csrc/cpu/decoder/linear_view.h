// A linear that the experts adapt, as pointers.
#pragma once

#include <map>
#include <optional>

#include "cpu/gemm/component_pages.h"
#include "cpu/gemm/linear.h"
#include "cpu/gemm/phase.h"

namespace zweave {

// Neighbouring rows of one mode, and of one slot where that is `merged`.
struct Run {
  int64_t begin, end;
  LinearMode mode;
};

// What lies between the two products of a linear.
template <class T>
struct Between {
  Buffer<T> hidden;  // [T, rank]
  Buffer<T> rest;    // [T, rest_rank]
  Buffer<T> paged;   // [T, components of the pages of a block of rows], where there are pages
};

// Components of a run's delta: of the leading factors, and of the rest.
struct DeltaRanks {
  int64_t leading, rest;
};

template <class T>
struct LinearView {
  int64_t inputs, outputs, rank;
  Weights dense, vt, u;  // W [outputs, inputs], V^T [rank, inputs], U [outputs, rank]
  const T* bias;         // [outputs], or null
  SlotTable scale;       // [S, rank]
  SlotTable delta;       // [S, delta_rank + rest_rank]
  int64_t delta_rank;    // leading components that deltas have
  int64_t rest_rank;     // components that follow them in factors of their own, or 0
  Weights rest_vt, rest_u;
  const uint8_t* modes;  // [S], the LinearMode of each slot
  const int32_t*
      supports;  // [S], how many leading components of a slot's delta can differ from 0, or null: all
  const std::map<int32_t, Weights>* merged;  // W' [outputs, inputs] of slots that have one
  bool all_factored;                         // whatever `modes` says
  std::optional<ComponentPages<T>> components;

  // Adds the products that read x to `first`, and those that wait for their results to `second`.
  // x: [T, inputs]; y: [T, outputs].
  void add_jobs(Buffer<T> x, const int32_t* slot, int64_t rows, Between<T> between, Buffer<T> y,
                Phase<T>& first, Phase<T>& second) const;

 private:
  LinearMode mode_of(int32_t slot) const;
  DeltaRanks delta_ranks_of(const int32_t* slot, const Run& run) const;
  Run run_from(const int32_t* slot, int64_t row, int64_t rows) const;
  void add_last(const Matmul<T>& last, const LinearOperands<T>& a, Run run, Buffer<T> paged, Phase<T>& first,
                Phase<T>& own, Phase<T>& second) const;
};

}  // namespace zweave
