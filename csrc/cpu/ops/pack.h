// Weights that an op is given, in panels; layouts: kernels/layout/packed.py.
#pragma once

#include "cpu/ops/packed_matrix.h"

namespace zweave {

// A weight [outputs, inputs] of T that comes packed (4 dimensions) or plain (2: it is packed here). Throws
// where it does not fit; of packed weights only the number of panels can be checked.
template <class T>
PackedMatrix packed(const TypedKernels<T>& kernel, const Argument& weight, int64_t outputs, int64_t inputs);

// The same of a weight that may also be int8 or int4 with scales, both packed or both plain.
// group: inputs that share a scale, 0 for all.
template <class T>
PackedMatrix packed_factor(const TypedKernels<T>& kernel, const Argument& weight,
                           const std::optional<at::Tensor>& scale, int64_t group, int64_t outputs,
                           int64_t inputs);

}  // namespace zweave
