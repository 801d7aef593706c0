// The twin of csrc/cuda/primitives.cuh for the emulator, and the words of CUDA that a host's compiler lacks.
#pragma once

#include <bit>
#include <cmath>

#include "emulator.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define threadIdx (emulator::self->index)
#define blockIdx (emulator::self->block.index)

inline void __syncthreads() { emulator::self->block.all.join(); }
inline void __syncwarp() { emulator::self->warp.meeting.join(); }

namespace zweave::cuda {

struct alignas(16) Vector {
  uint32_t x, y, z, w;
};

inline unsigned char* shared_memory() { return emulator::self->block.shared.data(); }

template <class T>
T keep_in_register(T value) {
  return value;
}

inline void cp_async_cg(Vector* to, const void* from, int bytes) {
  emulator::self->copies.begin(to, from, bytes);
}
inline void cp_async_ca(Vector* to, const void* from, int bytes) {
  emulator::self->copies.begin(to, from, bytes);
}
inline void cp_async_commit() { emulator::self->copies.commit(); }
template <int pending>
void cp_async_wait() {
  emulator::self->copies.wait(pending);
}

// The hardware would forgive a prefetch from nowhere; AddressSanitizer does not.
inline void prefetch(const void* address) { (void)*static_cast<const volatile char*>(address); }

inline float to_float(uint16_t bf16) { return std::bit_cast<float>(uint32_t(bf16) << 16); }
inline float not_a_number() { return NAN; }

inline uint16_t to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (value != value) return 0x7fff;
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Element `k` of 16 in a row's or column's fragments: lane 4 i + k / 2 % 4, register k / 8, half k % 2.
inline float element(const uint32_t registers[], int k) {
  return to_float(uint16_t(registers[k / 8] >> k % 2 * 16));
}

// Sums in double: the order in which the hardware adds within an instruction is not specified.
inline void mma_m16n8k16(float (&sum)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                         uint32_t b1) {
  const int lane = emulator::self->index.x % 32;
  const auto* all = emulator::self->warp.exchange(lane, {{a0, a1, a2, a3}, {b0, b1}});
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4, upper = i / 2, column = lane % 4 * 2 + i % 2;
    double total = sum[i];
    for (int k = 0; k < 16; ++k) {
      const auto& left = all[row * 4 + k / 2 % 4];
      const uint32_t a[2] = {left.a[upper], left.a[upper + 2]};
      total += double(element(a, k)) * element(all[column * 4 + k / 2 % 4].b, k);
    }
    sum[i] = float(total);
  }
}

inline void launch_dependents() {}
inline void wait_on_dependency() {
  emulator::self->waits_for_launch = true;
  while (!emulator::machine.previous_has_ended) emulator::Fiber::give_way();
}

}  // namespace zweave::cuda
