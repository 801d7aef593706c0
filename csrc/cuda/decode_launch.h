// Launches of the decode kernel, without torch.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/decode_product.h"

namespace zweave::cuda {

// Launches the products of a linear of at least one token and output, see SvfOperands. May be captured in a
// graph: no host synchronisation, no memory of its own, no state between calls. overlaps: the device (sm_90
// or newer) can start the second launch while the first runs.
cudaError_t launch_decode(const SvfOperands& operands, cudaStream_t stream, bool overlaps);

}  // namespace zweave::cuda
