// Packs a matrix in rows into panels.
#pragma once

#include "cpu/simd/kernels.h"

namespace zweave {
namespace {

// One panel from `rows` pointers; what lies past `present` rows or past `inputs` becomes zero.
template <class T>
void pack_panel(const T* const* rows, int64_t present, int64_t inputs, T* packed) {
  constexpr int64_t pack = kPack<T>;
  constexpr int64_t per_step = Simd::width * pack;
  const int64_t whole = inputs / per_step * per_step;
  char* out = reinterpret_cast<char*>(packed);
  for (int64_t first = 0; first < kPanel; first += Simd::width) {
    if (first + Simd::width > present) {
      for (int64_t row = first; row < first + Simd::width; ++row) {
        for (int64_t k = 0; k < whole; ++k) {
          packed[(k / pack * kPanel + row) * pack + k % pack] = row < present ? rows[row][k] : T{};
        }
      }
      continue;
    }
    const char* from[Simd::width];
    for (int i = 0; i < Simd::width; ++i) from[i] = reinterpret_cast<const char*>(rows[first + i]);
    for (int64_t k = 0; k < whole; k += per_step) {
      Simd::transpose(from, k * int64_t(sizeof(T)), out + (k / pack * kPanel + first) * 4, kPanel * 4);
    }
  }
  for (int64_t k = whole; k < divide_up(inputs, pack) * pack; ++k) {
    for (int64_t row = 0; row < kPanel; ++row) {
      packed[(k / pack * kPanel + row) * pack + k % pack] = row < present && k < inputs ? rows[row][k] : T{};
    }
  }
}

template <class T>
void pack(const T* weight, int64_t stride, int64_t outputs, int64_t inputs, T* packed, int64_t begin,
          int64_t end) {
  const int64_t panel_size = divide_up(inputs, kPack<T>) * kPanel * kPack<T>;
  for (int64_t panel = begin; panel < end; ++panel) {
    const T* rows[kPanel];
    const int64_t left = outputs - panel * kPanel;
    const int64_t present = left < kPanel ? left : kPanel;
    for (int64_t i = 0; i < present; ++i) rows[i] = weight + (panel * kPanel + i) * stride;
    pack_panel(rows, present, inputs, packed + panel * panel_size);
  }
}

}  // namespace
}  // namespace zweave
