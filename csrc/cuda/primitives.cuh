// The instructions that C++ has no function for. The tests replace this header by a twin that runs on a CPU.
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

// Keeps a value in its register: the compiler would compute it again in every pass of a loop.
template <class T>
__device__ __forceinline__ T keep_in_register(T value) {
  if constexpr (sizeof(T) == 8) {
    asm("" : "+l"(value));
  } else {
    asm("" : "+r"(value));
  }
  return value;
}

// Starts to copy `bytes` (0 to 16) to shared memory, past the first-level cache; the rest of `to` becomes
// zero. For weights, which are read once.
__device__ __forceinline__ void cp_async_cg(Vector* to, const void* from, int bytes) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes)
               : "memory");
}

// The same through the first-level cache, for what other warps of the SM will read too.
__device__ __forceinline__ void cp_async_ca(Vector* to, const void* from, int bytes) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes)
               : "memory");
}

// Makes a group of the copies that this thread began since the last call.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `pending` of this thread's groups are in flight.
template <int pending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

__device__ __forceinline__ void prefetch(const void* address) {
  asm volatile("prefetch.global.L1 [%0];" ::"l"(address));
}

// sum [16, 8] += a [16, 16] b [16, 8], all lanes of a warp together. With g = lane / 4 and q = lane % 4 a
// lane holds, two bf16 a register, a0 = a[g, 2q], a1 = a[g + 8, 2q], a2 = a[g, 2q + 8], a3 = a[g + 8, 2q +
// 8], b0 = b[2q, g], b1 = b[2q + 8, g], and sum[g, 2q], sum[g, 2q + 1], sum[g + 8, 2q], sum[g + 8, 2q + 1].
// Source: PTX ISA, mma.m16n8k16.
__device__ __forceinline__ void mma_m16n8k16(float (&sum)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                             uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Lets the next launch of the stream start, if that is a programmatic dependent launch.
__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits until the launch before has ended and its writes are visible; sm_80 starts no launch earlier.
__device__ __forceinline__ void wait_on_dependency() {
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
