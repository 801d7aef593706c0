// The term of a product whose weights are integers: activations are integers too (prepared_rows.h), and
//
//     y += sum over groups of weight_scale * sum over their blocks of x_scale * (integer product of a block)
//
// The integer products are exact and the rest is rounded in this order, one operation at a time, in every
// tile and with every instruction set.
#pragma once

#include "cpu/gemm/matmul_tile.h"
#include "cpu/gemm/prepared_rows.h"

namespace zweave {
namespace {

// Inputs between two steps of the weights' streams.
constexpr int64_t kUnit = 8;

// Blocks that row blocks pass over together: their weights stay in the second-level cache, beside those of
// the next tile. The sum of a group is cut there, however many rows there are.
constexpr int64_t kIntegerSlice = 32;

// Integer weights of a tile, eight inputs at a time.
template <Storage storage>
struct IntegerStream {
  static constexpr int64_t step = storage == Storage::int8 ? 2 * kLine : kLine;
  // What is added to the weights before Simd::dot multiplies them.
  static constexpr int32_t offset = storage == Storage::int8 ? Simd::byte_offset : 8;

  const char* at;
  int64_t panel_bytes;

  // Four inputs of a vector of outputs, and the next four.
  void load(int v, Simd::Bytes& low, Simd::Bytes& high) const {
    const char* from = at + (v / kPanelVectors) * panel_bytes + (v % kPanelVectors) * Simd::width * 4;
    if constexpr (storage == Storage::int8) {
      low = Simd::bytes(reinterpret_cast<const int8_t*>(from));
      high = Simd::bytes(reinterpret_cast<const int8_t*>(from + kLine));
    } else {
      Simd::nibbles(reinterpret_cast<const uint8_t*>(from), low, high);
    }
  }
};

template <int rows, int panels>
using Counts = Simd::I[rows][panels * kPanelVectors];

// count[r][.] += the product over `units` units; `x` stands at the first row's.
template <int rows, int panels, Storage storage>
inline __attribute__((always_inline)) void count_units(const int8_t* x, int64_t x_stride, int64_t units,
                                                       IntegerStream<storage>& stream, Ahead& ahead,
                                                       Counts<rows, panels>& count) {
  constexpr int vectors = panels * kPanelVectors;
  constexpr int64_t step = IntegerStream<storage>::step;
#pragma GCC unroll Simd::integer_unroll
  for (int64_t unit = 0; unit < units; ++unit, stream.at += step, x += kUnit) {
    for (int64_t line = 0; line < step; line += kLine) prefetch_line<panels>(ahead);
    Simd::Bytes weight[2][vectors];
#pragma GCC unroll 32
    for (int v = 0; v < vectors; ++v) stream.load(v, weight[0][v], weight[1][v]);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        const Simd::Bytes value = Simd::broadcast(x + r * x_stride + half * 4);
#pragma GCC unroll 32
        for (int v = 0; v < vectors; ++v) count[r][v] = Simd::dot(count[r][v], weight[half][v], value);
      }
    }
  }
}

// part[r][.] += weight_scale * x_scale[r] * count[r][.]; without weight_scales that comes later.
template <int rows, int panels>
inline __attribute__((always_inline)) void add_scaled(const Counts<rows, panels>& count, const float* x_scale,
                                                      int64_t x_stride, const Simd::F* weight_scale,
                                                      Sums<rows, panels>& part) {
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r, x_scale += x_stride) {
    const Simd::F scale = Simd::set1(*x_scale);
#pragma GCC unroll 32
    for (int v = 0; v < panels * kPanelVectors; ++v) {
      Simd::F value = Simd::mul(scale, Simd::to_float(count[r][v]));
      if (weight_scale) value = Simd::mul(weight_scale[v], value);
      part[r][v] = Simd::add(part[r][v], value);
    }
  }
}

// sums [rows, kTileOutputs] += weight_scale * part.
template <int rows, int panels>
inline __attribute__((always_inline)) void add_part(const Sums<rows, panels>& part,
                                                    const Simd::F* weight_scale, float* sums) {
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 32
    for (int v = 0; v < panels * kPanelVectors; ++v) {
      float* at = sums + r * kTileOutputs + v * Simd::width;
      const Simd::F value = weight_scale ? Simd::mul(weight_scale[v], part[r][v]) : part[r][v];
      Simd::store(at, Simd::add(Simd::load(at), value));
    }
  }
}

// Adds blocks [begin, end) of the term to `sums` of a tile. block_scales: every block of the weights has
// scales of its own, so that its products can be added to those of other blocks in registers.
template <class T, int rows, int panels, Storage storage, bool block_scales>
void integer_tile(const Term<T>& term, int64_t row, int64_t panel, int64_t begin, int64_t end, Fetch fetch,
                  float* sums) {
  constexpr int vectors = panels * kPanelVectors;
  constexpr int64_t block_bytes = kBlock / kUnit * IntegerStream<storage>::step;
  const PreparedRows x(term.prepared, term.inputs);
  const Weights& weights = term.weights;
  const int64_t bytes = weights.panel_bytes, scale_stride = weights.scale_groups * kPanel;
  const int64_t group_blocks = block_scales ? 1 : divide_up(weights.group, kBlock);
  const int64_t stride = x.stride(), words = stride / int64_t(sizeof(float));
  IntegerStream<storage> stream{weights.panels + panel * bytes + begin * block_bytes, bytes};
  Ahead ahead = fetch.ahead(stream.at, fetch.next, (end - begin) * (block_bytes / kLine), bytes);
  Sums<rows, panels> part;
  clear<rows, panels>(part);
  for (int64_t block = begin; block < end; ++block) {
    const int32_t* x_sum = x.sums(row) + block;
    Counts<rows, panels> count;
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const Simd::I none = Simd::whole(-IntegerStream<storage>::offset * x_sum[r * words]);
#pragma GCC unroll 32
      for (int v = 0; v < vectors; ++v) count[r][v] = none;
    }
    const int64_t left = term.inputs - block * kBlock, inputs = left < kBlock ? left : kBlock;
    count_units<rows, panels, storage>(x.values(row) + block * kBlock, stride, divide_up(inputs, kUnit),
                                       stream, ahead, count);
    const float* scales = weights.scales + panel * scale_stride + block / group_blocks * kPanel;
    Simd::F scale[vectors];
    const auto load_scales = [&] {
#pragma GCC unroll 32
      for (int v = 0; v < vectors; ++v) {
        scale[v] =
            Simd::load(scales + (v / kPanelVectors) * scale_stride + (v % kPanelVectors) * Simd::width);
      }
    };
    if constexpr (block_scales) {
      load_scales();
      add_scaled<rows, panels>(count, x.scales(row) + block, words, scale, part);
    } else {
      add_scaled<rows, panels>(count, x.scales(row) + block, words, nullptr, part);
      if (block + 1 < end && (block + 1) % group_blocks != 0) continue;
      load_scales();
      add_part<rows, panels>(part, scale, sums);
      clear<rows, panels>(part);
    }
  }
  if constexpr (block_scales) add_part<rows, panels>(part, nullptr, sums);
}

// The term under the panels of one tile, added to `sums` [row_end - row_begin, kTileOutputs]. `next` is where
// the panels of the tile after this one begin.
template <class T, int panels, Storage storage, bool block_scales>
void integer_panels(const Term<T>& term, int64_t row_begin, int64_t row_end, int64_t panel, const char* next,
                    float* sums) {
  constexpr int64_t slice_bytes = kIntegerSlice * (kBlock / kUnit) * IntegerStream<storage>::step;
  const int64_t count = divide_up(row_end - row_begin, Simd::integer_rows);
  const int64_t blocks = divide_up(term.inputs, kBlock);
  const char* here = term.weights.panels + panel * term.weights.panel_bytes;
  for (int64_t begin = 0; begin < blocks; begin += kIntegerSlice, here += slice_bytes) {
    const int64_t end = begin + kIntegerSlice < blocks ? begin + kIntegerSlice : blocks;
    const char* then = end < blocks ? here + slice_bytes : next;
    int64_t row = row_begin;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t rows = divide_up(row_end - row, count - i);
      const Fetch fetch{then, i, count};
      with_rows<Simd::integer_rows>(rows, [&]<int known>() {
        integer_tile<T, known, panels, storage, block_scales>(term, row, panel, begin, end, fetch,
                                                              sums + (row - row_begin) * kTileOutputs);
      });
      row += rows;
    }
  }
}

template <class T, int panels, Storage storage>
void add_integers(const Term<T>& term, int64_t row_begin, int64_t row_end, int64_t panel, const char* next,
                  float* sums) {
  const auto add = term.weights.group == kBlock ? integer_panels<T, panels, storage, true>
                                                : integer_panels<T, panels, storage, false>;
  add(term, row_begin, row_end, panel, next, sums);
}

}  // namespace
}  // namespace zweave
