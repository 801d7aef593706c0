#include "cpu/simd/kernels.h"

#ifdef ZWEAVE_X86
// These come before the pragma: what they define is shared with files for lesser processors.
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <string_view>

// GCC 12 takes the deliberately undefined operands of its own intrinsics for mistakes (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")
// g++ has read the whole file when it comes to the pragma, so that __AVX512BF16__ is not defined.
#define ZWEAVE_BF16
#include "cpu/simd/avx512_simd.h"

// Made of what stands above.
#include "cpu/isa/table.h"

namespace zweave {
static_assert(std::string_view(kTable.name) == "avx512");
const Kernels& kernels_avx512() { return kTable; }
}  // namespace zweave
#endif
