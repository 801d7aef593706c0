// The instructions that C++ has no word for. The tests replace this header by a twin that runs on a CPU.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace zweave::cuda {

// 16 bytes, what one instruction copies: eight bf16.
using Vector = uint4;

__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char dynamic_shared_memory[];
  return dynamic_shared_memory;
}

// Has the compiler keep a value in its register instead of computing it again in a loop.
template <class T>
__device__ __forceinline__ T keep(T value) {
  if constexpr (sizeof(T) == 8) {
    asm("" : "+l"(value));
  } else {
    asm("" : "+r"(value));
  }
  return value;
}

// Starts to copy `bytes` (0 to 16) to shared memory; the rest of `to` becomes zero. Weights are read once and
// stay out of the first-level cache.
__device__ __forceinline__ void copy_once(Vector* to, const void* from, int bytes) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes)
               : "memory");
}

// The same for what the other warps of the processor will read too.
__device__ __forceinline__ void copy_shared(Vector* to, const void* from, int bytes) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes)
               : "memory");
}

// Closes the group of copies begun since the last call, of this thread.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `pending` of this thread's groups are under way.
template <int pending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

__device__ __forceinline__ void prefetch(const void* address) {
  asm volatile("prefetch.global.L1 [%0];" ::"l"(address));
}

// sum [16, 8] += a [16, 16] b [16, 8], all lanes of a warp together. With g = lane / 4 and q = lane % 4 a
// lane holds, two bf16 a register, a0 = a[g, 2q], a1 = a[g + 8, 2q], a2 = a[g, 2q + 8], a3 = a[g + 8, 2q +
// 8], b0 = b[2q, g], b1 = b[2q + 8, g], and sum[g, 2q], sum[g, 2q + 1], sum[g + 8, 2q], sum[g + 8, 2q + 1].
// Source: PTX ISA, mma.m16n8k16.
__device__ __forceinline__ void multiply_add(float (&sum)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                             uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Lets the next launch of the stream start, if it was made as a programmatic dependent one.
__device__ __forceinline__ void allow_next_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits until the launch before has ended and its writes can be seen; sm_80 starts no launch earlier.
__device__ __forceinline__ void wait_for_previous_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ float to_float(uint16_t bf16) { return __uint_as_float(uint32_t(bf16) << 16); }

// To nearest, ties to even.
__device__ __forceinline__ uint16_t to_bf16(float value) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

__device__ __forceinline__ float not_a_number() { return __int_as_float(0x7fc00000); }

}  // namespace zweave::cuda
