#include "cuda/decode_launch.h"

#include "cuda/decode_product.cuh"

namespace zweave::cuda {
namespace {

template <class Traits>
cudaError_t launch(const DecodeProduct& p, cudaStream_t stream, bool overlaps) {
  const auto kernel = decode_product_kernel<Traits>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Traits::kSharedBytes);
  if (error != cudaSuccess) return error;
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
