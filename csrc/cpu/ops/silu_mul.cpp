#include <ATen/Parallel.h>

#include "cpu/ops/dispatch.h"
#include "cpu/ops/ops.h"

namespace zweave::ops {

at::Tensor silu_mul(const at::Tensor& gate, const at::Tensor& up) {
  Argument{"silu_mul", "gate", gate}.shape({-1, -1});
  Argument{"silu_mul", "up", up}.dtype(gate.scalar_type()).shape(gate.sizes());
  return dispatch("silu_mul", "gate", gate, [&]<class T>(const TypedKernels<T>& kernel) {
    const int64_t rows = gate.size(0), width = gate.size(1);
    at::Tensor y = empty_tensor({rows, width}, gate.options());
    if (y.numel() == 0) return y;
    const SiluMul<T> call{data<T>(gate),      gate.stride(0), data<T>(up), up.stride(0),
                          mutable_data<T>(y), width,          width};
    at::parallel_for(0, rows, row_grain(width),
                     [&](int64_t begin, int64_t end) { kernel.silu_mul(call, begin, end); });
    return y;
  });
}

}  // namespace zweave::ops
