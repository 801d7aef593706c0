// The register tile of a term whose weights lie on a grid and whose rows are whole numbers of two bytes
// (grid_rows.h): codes are multiplied by either byte, exactly, and the sums of a group are scaled.
#pragma once

#include "cpu/gemm/grid_layout.h"
#include "cpu/gemm/grid_numbers.h"
#include "cpu/gemm/grid_rows.h"
#include "cpu/gemm/matmul_integer.h"

namespace zweave {
namespace {

// The sums of a group over one of the bytes.
template <int bits, int rows, int panels>
struct ByteSums {
  Counts<rows, panels> sum;

  void clear() {
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 32
      for (int v = 0; v < panels * kPanelVectors; ++v) sum[r][v] = Simd::whole(0);
    }
  }
  void add(int r, int v, Simd::Bytes codes, Simd::Bytes x) {
    sum[r][v] = bits == 4 ? Simd::dot_nibbles(sum[r][v], codes, x) : Simd::dot(sum[r][v], codes, x);
  }
  Simd::F settled(int r, int v) const {
    return Simd::to_float(bits == 4 ? Simd::settle_nibbles(sum[r][v]) : sum[r][v]);
  }
};

// Adds groups [begin, end) of the term to `sums` of a tile.
template <int rows, int panels, Storage storage>
void grid_tile(const Term<bf16>& term, int64_t row, int64_t panel, int64_t begin, int64_t end, Fetch fetch,
               float* sums) {
  using Layout = GridLayout<storage>;
  using Codes = IntegerStream<Layout::bits == 8 ? Storage::int8 : Storage::int4>;
  constexpr int vectors = panels * kPanelVectors;
  // What is taken off the codes that are multiplied.
  constexpr float offset = Layout::bits == 8 ? Simd::byte_offset : Layout::origin;
  const int64_t bytes = term.weights.panel_bytes;
  const char* weights = term.weights.panels + panel * bytes;
  Ahead ahead = fetch.ahead(weights + Layout::codes(begin), fetch.next,
                            (Layout::codes(end) - Layout::codes(begin)) / kLine, bytes);
  const PreparedRows prepared(term.prepared, term.inputs);
  const int64_t stride = prepared.stride();
  for (int64_t group = begin; group < end; ++group) {
    ByteSums<Layout::bits, rows, panels> high, low;
    high.clear();
    low.clear();
    Codes stream{weights + Layout::codes(group), bytes};
    const int8_t* x = prepared.wholes(row) + group * 2 * kGroup;
    for (int64_t unit = 0; unit < kGroup / kUnit; ++unit, stream.at += Codes::step, x += 2 * kUnit) {
      for (int64_t line = 0; line < Codes::step; line += kLine) prefetch_line<panels>(ahead);
      Simd::Bytes codes[2][vectors];
#pragma GCC unroll 32
      for (int v = 0; v < vectors; ++v) stream.load(v, codes[0][v], codes[1][v]);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r) {
          const int8_t* at = x + r * stride + half * kUnit;
          const Simd::Bytes upper = Simd::broadcast(at), lower = Simd::broadcast(at + 4);
#pragma GCC unroll 32
          for (int v = 0; v < vectors; ++v) {
            high.add(r, v, codes[half][v], upper);
            low.add(r, v, codes[half][v], lower);
          }
        }
      }
    }
    prefetch_line<panels>(ahead);
    const GridNumbers<storage, panels> numbers(weights, bytes, group);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const GroupNumbers& of_row = prepared.groups(row + r)[group];
      const Simd::F scale = Simd::set1(of_row.scale), less = Simd::set1(-offset * of_row.sum);
#pragma GCC unroll 32
      for (int v = 0; v < vectors; ++v) {
        const Simd::F whole = Simd::fma(high.settled(r, v), Simd::set1(kRadix), low.settled(r, v));
        const Simd::F part = offset ? Simd::fma(scale, whole, less) : Simd::mul(scale, whole);
        numbers.add(part, of_row.sum, v, sums + r * kTileOutputs + v * Simd::width);
      }
    }
  }
}

}  // namespace
}  // namespace zweave
