// Products for the entry points: weights packed or plain, and the split of the work between threads.
#pragma once

#include "cpu/checks.h"

namespace zweave {

// weight [outputs, inputs] to panels.
template <class T>
at::Tensor pack_panels(const TypedKernels<T>& kernel, const at::Tensor& weight);

// Panels of a weight that may come packed (4 dimensions) or plain (2: it is packed on the fly). Throws unless
// it is [outputs, inputs]; of packed weights only whole panels can be told.
template <class T>
at::Tensor panels_of(const TypedKernels<T>& kernel, const Argument& weight, int64_t outputs, int64_t inputs);

// Computes all `rows` rows of a product, in parallel.
template <class T>
void multiply(const TypedKernels<T>& kernel, const Matmul<T>& product, int64_t rows);

}  // namespace zweave
