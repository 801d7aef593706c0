// The table of one instruction set, made of the templates; included after its *_simd.h.
#pragma once

#include "cpu/attention/attention.h"
#include "cpu/gemm/matmul.h"
#include "cpu/gemm/pack_panels.h"
#include "cpu/gemm/prepare_rows.h"
#include "cpu/simd/kernels.h"
#include "cpu/simd/rows.h"

namespace zweave {
namespace {

template <class T>
constexpr TypedKernels<T> typed_kernels() {
  return {pack<T>, matmul<T>,   prepare_rows<T>, norm<T>,
          rope<T>, silu_mul<T>, attention<T>,    attention_scratch<T>};
}

constexpr Kernels kTable = {Simd::name, typed_kernels<float>(), typed_kernels<bf16>(), mix, greedy};

}  // namespace
}  // namespace zweave
