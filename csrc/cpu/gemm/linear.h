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
  char* integers;  // room for the rows as integers, for each thread of a team, or null
};

// Rows [S, width] of float32, one a slot.
struct SlotTable {
  const float* data;
  int64_t stride;
};

// What a linear is computed of; a mode reads what it has use for.
template <class T>
struct LinearOperands {
  const T* x;  // [T, inputs]
  int64_t x_stride;
  char* x_integers;  // see Buffer
  int64_t inputs, outputs, rank;
  Weights dense;        // W [outputs, inputs]; W' in merged mode
  Weights vt, u;        // V^T [rank, inputs], U [outputs, rank]
  SlotTable scale;      // [S, rank]: the scale of factored mode, the delta of delta mode
  const int32_t* slot;  // [T]
  bool zero_base;       // slot 0 gets W x alone, whatever row 0 of the table holds
  Buffer<T> hidden;     // [T, rank], scale * V^T x
  const T* bias;        // [outputs], or null
  T* y;                 // [T, outputs], or null
  float* y_f32;         // the same in float32, where y is null
  int64_t y_stride;
};

// One product, or two of which the second reads what the first writes.
template <class T>
struct LinearProducts {
  Matmul<T> product[2];
  int64_t count;
};

template <class T>
LinearProducts<T> build_linear(LinearMode mode, const LinearOperands<T>& a) {
  const bool has_factors = mode == LinearMode::delta || mode == LinearMode::factored;
  LinearProducts<T> result{};
  if (has_factors) {
    Matmul<T>& first = result.product[result.count++];
    first.terms[first.num_terms++] = {a.x, a.x_stride, a.vt, a.inputs, a.x_integers};
    first.outputs = a.rank;
    first.y = a.hidden.data;
    first.y_stride = a.hidden.stride;
    first.scale = a.scale.data;
    first.scale_stride = a.scale.stride;
    first.slot = a.slot;
    first.zero_base = a.zero_base;
  }
  Matmul<T>& last = result.product[result.count++];
  if (mode != LinearMode::factored)
    last.terms[last.num_terms++] = {a.x, a.x_stride, a.dense, a.inputs, a.x_integers};
  if (has_factors) {
    last.terms[last.num_terms++] = {a.hidden.data, a.hidden.stride, a.u, a.rank, a.hidden.integers};
  }
  last.outputs = a.outputs;
  last.y = a.y;
  last.y_f32 = a.y_f32;
  last.y_stride = a.y_stride;
  last.bias = a.bias;
  return result;
}

}  // namespace zweave
