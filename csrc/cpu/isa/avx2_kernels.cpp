#include "cpu/simd/kernels.h"

#ifdef ZWEAVE_X86
// These come before the pragma: what they define is shared with files for lesser processors.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#pragma GCC target("avx2,fma,f16c")
#include "cpu/simd/avx2_simd.h"

// Made of what stands above.
#include "cpu/isa/table.h"

namespace zweave {
const Kernels& kernels_avx2() { return kTable; }
}  // namespace zweave
#endif
