// Where the codes and scales of weights on a grid lie; kernels/layout/grid.py makes them.
//
// A group is 32 inputs of an output. A panel is one stream: lines of 64 bytes that hold four bytes of codes
// for each of its 16 outputs, and among them the scales.
#pragma once

#include <cstdint>

#include "cpu/gemm/prepared_rows.h"
#include "cpu/simd/kernels.h"

namespace zweave {

template <Storage storage>
struct GridLayout;

// Two groups, then their scales as halves; codes around 0.
template <int bits_>
struct CentredLayout {
  static constexpr int bits = bits_;
  // What is taken off a stored code; bytes are signed.
  static constexpr int origin = bits == 4 ? 8 : 0;
  static constexpr bool has_minimum = false, has_halves = true;
  static constexpr int64_t block_groups = 2;
  static constexpr int64_t group_bytes = kGroup * kPanel * bits / 8, block_bytes = 2 * group_bytes + 64;

  // group / 2 * block_bytes, and for the second group of a block group_bytes or 32 more: written in few
  // instructions, since a tile asks for both once a group.
  static constexpr int64_t codes(int64_t group) { return group * group_bytes + (group & ~1) * 32; }
  static constexpr int64_t scales(int64_t group) { return ((group | 1) + 1) * group_bytes + group * 32; }
  static constexpr int64_t bytes(int64_t groups) { return divide_up(groups, 2) * block_bytes; }
};

// A group, then its scales and its minima.
template <int64_t number_bytes>
struct MinimumLayout {
  static constexpr int bits = 4, origin = 0;
  static constexpr bool has_minimum = true, has_halves = number_bytes == 2;
  static constexpr int64_t block_groups = 1;
  static constexpr int64_t group_bytes = kGroup * kPanel * bits / 8;
  static constexpr int64_t block_bytes = group_bytes + 2 * number_bytes * kPanel;

  static constexpr int64_t codes(int64_t group) { return group * block_bytes; }
  static constexpr int64_t scales(int64_t group) { return group * block_bytes + group_bytes; }
  static constexpr int64_t minima(int64_t group) { return scales(group) + number_bytes * kPanel; }
  static constexpr int64_t bytes(int64_t groups) { return groups * block_bytes; }
};

template <>
struct GridLayout<Storage::grid4> : CentredLayout<4> {};
template <>
struct GridLayout<Storage::grid8> : CentredLayout<8> {};
template <>
struct GridLayout<Storage::grid4_minimum> : MinimumLayout<2> {};
template <>
struct GridLayout<Storage::grid4_wide> : MinimumLayout<4> {};

}  // namespace zweave
