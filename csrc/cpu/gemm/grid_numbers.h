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

// The weights of a group: scale * (code - offset) + minimum, `offset` being what the codes that are
// multiplied have too much.
template <Storage storage, int panels, int offset = 0>
struct GridNumbers {
  using Layout = GridLayout<storage>;
  static_assert(!(Layout::has_minimum && offset));

  Simd::F scale[panels * kPanelVectors], minimum[panels * kPanelVectors];

  // weights: of the first panel.
  GridNumbers(const char* weights, int64_t panel_bytes, int64_t group) {
    load_numbers<Layout::has_halves, panels>(weights + Layout::scales(group), panel_bytes, scale);
    if constexpr (Layout::has_minimum) {
      load_numbers<Layout::has_halves, panels>(weights + Layout::minima(group), panel_bytes, minimum);
    } else if constexpr (offset) {
#pragma GCC unroll 32
      for (int v = 0; v < panels * kPanelVectors; ++v) minimum[v] = Simd::mul(scale[v], Simd::set1(-offset));
    }
  }

  // sum + scale * part + minimum * x_sum, of a vector of outputs: part and x_sum are the sums of code * x and
  // of x over the group.
  Simd::F add(Simd::F part, float x_sum, int v, Simd::F sum) const {
    sum = Simd::fma(scale[v], part, sum);
    if constexpr (Layout::has_minimum || offset) sum = Simd::fma(minimum[v], Simd::set1(x_sum), sum);
    return sum;
  }
};

}  // namespace
}  // namespace zweave
