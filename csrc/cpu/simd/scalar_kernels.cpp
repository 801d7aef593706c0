#include "cpu/simd/scalar_simd.h"
#include "cpu/simd/table.h"

namespace zweave {
const Kernels& kernels_scalar() { return kTable; }
}  // namespace zweave
