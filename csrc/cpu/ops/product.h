// Products for the entry points: weights packed or plain, and the split of the work between threads.
#pragma once

#include <array>

#include "cpu/ops/packed_matrix.h"

namespace zweave {

template <class T>
std::array<int64_t, 4> panel_shape(int64_t outputs, int64_t inputs) {
  return {divide_up(outputs, kPanel), divide_up(inputs, kGroup<T>), kPanel, kGroup<T>};
}

// weight [outputs, inputs] to panels, of panel_shape.
template <class T>
void pack_panels(const TypedKernels<T>& kernel, const at::Tensor& weight, const at::Tensor& packed);

// A weight of T that may come packed (4 dimensions) or plain (2: it is packed on the fly). Throws unless it
// is [outputs, inputs]; of packed weights only whole panels can be told.
template <class T>
PackedMatrix packed(const TypedKernels<T>& kernel, const Argument& weight, int64_t outputs, int64_t inputs);

// The same of a weight that may also be int8 or int4 with scales, both packed or both plain.
template <class T>
PackedMatrix packed_factor(const TypedKernels<T>& kernel, const Argument& weight,
                           const std::optional<at::Tensor>& scale, int64_t group, int64_t outputs,
                           int64_t inputs);

// Panels of integers [outputs, columns]: int8, a column an input, or int4, a byte two inputs.
at::Tensor pack_integers(const at::Tensor& weight);

// An uninitialised [rows, width] whose rows a product reads well.
template <class T>
at::Tensor empty_rows(int64_t rows, int64_t width, const at::TensorOptions& options);

// x, or a copy of it whose rows a product reads well.
template <class T>
at::Tensor readable_rows(const at::Tensor& x);

// Room for every thread's x [rows, inputs] as integers, for a product with `weight`; nothing where that is
// plain.
at::Tensor room_for_integers(const PackedMatrix& weight, int64_t rows, int64_t inputs);

// y = x W^T for x [T, inputs] and y [T, outputs] in T or float32.
// `integers`: room_for_integers of x, where the weight is not plain.
template <class T>
Matmul<T> product(const at::Tensor& x, const PackedMatrix& weight, const at::Tensor& y,
                  const at::Tensor& integers = {});

// The sum of `product` and x W^T.
template <class T>
void add_term(Matmul<T>& product, const at::Tensor& x, const PackedMatrix& weight,
              const at::Tensor& integers = {});

// Multiplies row t of y by scale[slot[t]].
template <class T>
void scale_rows(Matmul<T>& product, const at::Tensor& scale, const at::Tensor& slot);

// Computes `rows` rows of products, one product after the other, on one team of threads.
template <class T>
void compute(const TypedKernels<T>& kernel, std::initializer_list<Matmul<T>> products, int64_t rows);

}  // namespace zweave
