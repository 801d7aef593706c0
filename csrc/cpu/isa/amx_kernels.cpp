#include "cpu/simd/kernels.h"

#ifdef ZWEAVE_X86
// These come before the pragma: what they define is shared with files for lesser processors.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

// GCC 12 takes the deliberately undefined operands of its own intrinsics for mistakes (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,amx-tile,amx-bf16")
// g++ has read the whole file when it comes to the pragma, so that __AVX512BF16__ is not defined.
#define ZWEAVE_BF16
#include "cpu/simd/avx512_simd.h"

// Made of what stands above.
#include "cpu/gemm/matmul_amx.h"

namespace zweave {
namespace {

// Tiles multiply rows for a grid as they are.
void prepare_tile_rows(const Term<bf16>& term, int64_t row_begin, int64_t row_end) {
  const auto prepare =
      is_integer(term.weights.storage) ? kernels_avx512().b16.prepare_rows : sum_groups<bf16>;
  prepare(term, row_begin, row_end);
}

// All but the products of bf16 is AVX-512's.
Kernels with_tiles(Kernels kernels) {
  kernels.name = "amx";
  kernels.b16.matmul = matmul_amx;
  kernels.b16.prepare_rows = prepare_tile_rows;
  return kernels;
}

}  // namespace

const Kernels& kernels_amx() {
  static const Kernels kernels = with_tiles(kernels_avx512());
  return kernels;
}
}  // namespace zweave
#endif
