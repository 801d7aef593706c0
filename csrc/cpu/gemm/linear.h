// A linear as the matrix products that it is made of.
#pragma once

#include "cpu/simd/kernels.h"

namespace zweave {

// How a linear that experts adapt computes a row; the numbers are those of kernels/adapted_linear.py.
enum class LinearMode : uint8_t {
  dense,     // W x
  delta,     // W x + U (delta * V^T x) over the leading components
  factored,  // U (scale * V^T x)
  merged,    // W' x, the slot's own weight
};

// Rows [T, width] that one product writes and another one reads.
template <class T>
struct Buffer {
  T* data;
  int64_t stride;
  char* prepared;  // room for what is prepared of the rows, for each thread of a team, or null
};

// Rows [S, width] of float32, one a slot.
struct SlotTable {
  const float* data;
  int64_t stride;
};

// Some components of a linear, side by side.
template <class T>
struct Factors {
  int64_t rank;
  Weights vt, u;     // V^T [rank, inputs], U [outputs, rank]
  SlotTable scale;   // [S, rank]: the scale of factored mode, the delta of delta mode
  Buffer<T> hidden;  // [T, rank], scale * V^T x
};

// What a linear is computed of; a mode reads what it has use for.
template <class T>
struct LinearOperands {
  const T* x;  // [T, inputs]
  int64_t x_stride;
  char* x_prepared;  // see Buffer
  int64_t inputs, outputs;
  Weights dense;        // W [outputs, inputs]; W' in merged mode
  Factors<T> factors;   // of delta and factored mode
  Factors<T> rest;      // the components beyond those, of delta mode; of rank 0 if there are none
  const int32_t* slot;  // [T]
  bool zero_base;       // slot 0 gets W x alone, whatever row 0 of the table holds
  const T* bias;        // [outputs], or null
  T* y;                 // [T, outputs], or null
  float* y_f32;         // the same in float32, where y is null
  int64_t y_stride;
};

// Products of x, and the last one, which reads what they write.
template <class T>
struct LinearProducts {
  Matmul<T> first[2];
  int64_t num_first;
  Matmul<T> last;
};

template <class T>
LinearProducts<T> build_linear(LinearMode mode, const LinearOperands<T>& a) {
  LinearProducts<T> result{};
  Matmul<T>& last = result.last;
  if (mode != LinearMode::factored)
    last.terms[last.num_terms++] = {a.x, a.x_stride, a.dense, a.inputs, a.x_prepared};
  const auto add = [&](const Factors<T>& f) {
    Matmul<T>& first = result.first[result.num_first++];
    first.terms[first.num_terms++] = {a.x, a.x_stride, f.vt, a.inputs, a.x_prepared};
    first.outputs = f.rank;
    first.y = f.hidden.data;
    first.y_stride = f.hidden.stride;
    first.scale = f.scale.data;
    first.scale_stride = f.scale.stride;
    first.slot = a.slot;
    first.zero_base = a.zero_base;
    last.terms[last.num_terms++] = {f.hidden.data, f.hidden.stride, f.u, f.rank, f.hidden.prepared};
  };
  if (mode == LinearMode::delta || mode == LinearMode::factored) add(a.factors);
  if (mode == LinearMode::delta && a.rest.rank > 0) add(a.rest);
  last.outputs = a.outputs;
  last.y = a.y;
  last.y_f32 = a.y_f32;
  last.y_stride = a.y_stride;
  last.bias = a.bias;
  return result;
}

}  // namespace zweave
