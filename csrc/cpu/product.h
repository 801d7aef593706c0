// Products for the entry points: weights packed or plain, and the split of the work between threads.
#pragma once

#include <array>

#include "cpu/checks.h"

namespace zweave {

template <class T>
std::array<int64_t, 4> panel_shape(int64_t outputs, int64_t inputs) {
  return {divide_up(outputs, kPanel), divide_up(inputs, kGroup<T>), kPanel, kGroup<T>};
}

// weight [outputs, inputs] to panels, of panel_shape.
template <class T>
void pack_panels(const TypedKernels<T>& kernel, const at::Tensor& weight, const at::Tensor& packed);

// Panels of a weight that may come packed (4 dimensions) or plain (2: it is packed on the fly). Throws unless
// it is [outputs, inputs]; of packed weights only whole panels can be told.
template <class T>
at::Tensor panels_of(const TypedKernels<T>& kernel, const Argument& weight, int64_t outputs, int64_t inputs);

// An uninitialised [rows, width] whose rows a product reads well.
template <class T>
at::Tensor empty_rows(int64_t rows, int64_t width, const at::TensorOptions& options);

// x, or a copy of it whose rows a product reads well.
template <class T>
at::Tensor readable_rows(const at::Tensor& x);

// y = x W^T for x [T, inputs], y [T, outputs] in T or float32, and panels of W.
template <class T>
Matmul<T> product(const at::Tensor& x, const at::Tensor& panels, const at::Tensor& y);

// The sum of `product` and x W^T.
template <class T>
void add_term(Matmul<T>& product, const at::Tensor& x, const at::Tensor& panels);

// Multiplies row t of y by scale[slot[t]].
template <class T>
void scale_rows(Matmul<T>& product, const at::Tensor& scale, const at::Tensor& slot);

// Computes rows [begin, end) of a product, in parallel.
template <class T>
void multiply(const TypedKernels<T>& kernel, const Matmul<T>& product, int64_t begin, int64_t end);

}  // namespace zweave
