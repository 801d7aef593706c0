// The scales and minima of a group of a grid, and what they make of its sums.
#pragma once

#include "cpu/gemm/grid_layout.h"
#include "cpu/gemm/matmul_tile.h"

namespace zweave {
namespace {

// The numbers of a group's outputs, as halves or floats.
template <bool halves, int panels>
inline __attribute__((always_inline)) void load_numbers(const char* at, int64_t panel_bytes,
                                                        Simd::F (&to)[panels * kPanelVectors]) {
#pragma GCC unroll 32
  for (int v = 0; v < panels * kPanelVectors; ++v) {
    const char* from = at + (v / kPanelVectors) * panel_bytes;
    const int64_t first = (v % kPanelVectors) * Simd::width;
    if constexpr (halves) {
      to[v] = Simd::load_halves(from + first * 2);
    } else {
      to[v] = Simd::load(reinterpret_cast<const float*>(from) + first);
    }
  }
}

template <Storage storage, int panels>
struct GridNumbers {
  using Layout = GridLayout<storage>;

  Simd::F scale[panels * kPanelVectors], minimum[panels * kPanelVectors];

  // weights: of the first panel.
  GridNumbers(const char* weights, int64_t panel_bytes, int64_t group) {
    load_numbers<Layout::has_halves, panels>(weights + Layout::scales(group), panel_bytes, scale);
    if constexpr (Layout::has_minimum) {
      load_numbers<Layout::has_halves, panels>(weights + Layout::minima(group), panel_bytes, minimum);
    }
  }

  // to += scale * part + minimum * x_sum, of a vector of outputs: the sums of code * x and of x over the
  // group.
  void add(Simd::F part, float x_sum, int v, float* to) const {
    Simd::F sum = Simd::fma(scale[v], part, Simd::load(to));
    if constexpr (Layout::has_minimum) sum = Simd::fma(minimum[v], Simd::set1(x_sum), sum);
    Simd::store(to, sum);
  }
};

}  // namespace
}  // namespace zweave
