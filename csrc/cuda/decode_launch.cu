#include "cuda/decode_launch.h"

#include <atomic>

#include "cuda/decode_product.cuh"

namespace zweave::cuda {
namespace {

// Lets a kernel have its shared memory on the current device. That lasts, so it is asked for once on each of
// the first 64 devices: a call takes a microsecond or two of each launch.
template <class Traits>
cudaError_t allow_shared_memory() {
  static std::atomic<uint64_t> allowed = 0;
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  const uint64_t bit = device < 64 ? uint64_t(1) << device : 0;
  if (allowed.load(std::memory_order_relaxed) & bit) return cudaSuccess;
  const cudaError_t error = cudaFuncSetAttribute(
      decode_product_kernel<Traits>, cudaFuncAttributeMaxDynamicSharedMemorySize, Traits::kSharedBytes);
  if (error == cudaSuccess) allowed.fetch_or(bit, std::memory_order_relaxed);
  return error;
}

template <class Traits>
cudaError_t launch(const DecodeProduct& p, cudaStream_t stream, bool overlaps) {
  const auto kernel = decode_product_kernel<Traits>;
  if (const cudaError_t error = allow_shared_memory<Traits>(); error != cudaSuccess) return error;
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(token_blocks<Traits>(p), row_blocks<Traits>(p));
  config.blockDim = dim3(Traits::kThreads);
  config.dynamicSmemBytes = Traits::kSharedBytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = p.follows && overlaps ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, p);
}

cudaError_t launch(const DecodeProduct& p, cudaStream_t stream, bool overlaps) {
  return with_decode_traits(decode_config(p),
                            [&]<class Traits>() { return launch<Traits>(p, stream, overlaps); });
}

}  // namespace

cudaError_t launch_decode(const SvfOperands& operands, cudaStream_t stream, bool overlaps) {
  if (operands.rank > 0) {
    const cudaError_t error = launch(hidden_product(operands), stream, overlaps);
    if (error != cudaSuccess) return error;
  }
  return launch(output_product(operands), stream, overlaps);
}

}  // namespace zweave::cuda
