#include "cpu/simd/scalar_simd.h"

// Made of what stands above.
#include "cpu/isa/table.h"

namespace zweave {
const Kernels& kernels_scalar() { return kTable; }
}  // namespace zweave
