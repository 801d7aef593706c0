// Which of the compiled instruction sets this process uses.
#pragma once

#include "cpu/simd/kernels.h"

namespace zweave {

// The widest set this processor has, or the one that ZWEAVE_CPU_ISA names ("scalar", "avx2",
// "avx512_vnni", "avx512", "amx"). Chosen at the first call. Throws std::runtime_error where the name is
// unknown or the set is not supported.
const Kernels& kernels();

}  // namespace zweave
