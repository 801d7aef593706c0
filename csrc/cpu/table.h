// The table of one instruction set, made of the templates; included after its simd_*.h.
#pragma once

#include "cpu/attention.h"
#include "cpu/kernels.h"
#include "cpu/matmul.h"
#include "cpu/pack_panels.h"
#include "cpu/quantize_rows.h"
#include "cpu/rows.h"

namespace zweave {
namespace {

template <class T>
constexpr TypedKernels<T> typed_kernels() {
  return {pack<T>, matmul<T>,   quantize_rows<T>, norm<T>,
          rope<T>, silu_mul<T>, attention<T>,     attention_scratch<T>};
}

constexpr Kernels kTable = {Simd::name, typed_kernels<float>(), typed_kernels<bf16>(), mix, greedy};

}  // namespace
}  // namespace zweave
