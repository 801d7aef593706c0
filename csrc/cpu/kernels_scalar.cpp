#include "cpu/simd_scalar.h"
#include "cpu/table.h"

namespace zweave {
const Kernels& kernels_scalar() { return kTable; }
}  // namespace zweave
