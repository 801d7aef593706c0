// The register tile of a term whose weights lie on a grid and whose rows are whole numbers of two bytes
// (grid_rows.h): codes are multiplied by either byte, exactly, and the sums of a group are scaled.
#pragma once

#include "cpu/gemm/grid_layout.h"
#include "cpu/gemm/grid_numbers.h"
#include "cpu/gemm/grid_rows.h"
#include "cpu/gemm/matmul_integer.h"

namespace zweave {
namespace {

// The sums of a group. In two passes over its codes, with the high bytes and then with the low ones, one sum
// takes both; in one pass each byte has a sum of its own, which few rows have the registers for.
template <int bits, int rows, int panels>
struct WholeSums {
  static constexpr int passes = rows < Simd::two_pass_rows ? 1 : 2, bytes = 2 / passes;

  Counts<rows, panels> sum[bytes];

  template <class Change>
  inline __attribute__((always_inline)) void each(Change change) {
#pragma GCC unroll 2
    for (int byte = 0; byte < bytes; ++byte) {
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 32
        for (int v = 0; v < panels * kPanelVectors; ++v) change(sum[byte][r][v]);
      }
    }
  }
  void clear() {
    each([](Simd::I& part) { part = Simd::whole(0); });
  }
  // From the first pass to the second.
  void shift() {
    each([](Simd::I& part) { part = Simd::shift_left<kRadixBits>(part); });
  }
  void add(int byte, int r, int v, Simd::Bytes codes, Simd::Bytes x) {
    Simd::I& part = sum[byte][r][v];
    part = bits == 4 ? Simd::dot_nibbles(part, codes, x) : Simd::dot(part, codes, x);
  }
  Simd::F whole(int r, int v) const {
    const auto settled = [&](int byte) {
      return Simd::to_float(bits == 4 ? Simd::settle_nibbles(sum[byte][r][v]) : sum[byte][r][v]);
    };
    return bytes == 1 ? settled(0) : Simd::fma(settled(0), Simd::set1(kRadix), settled(bytes - 1));
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
  constexpr int offset = Layout::bits == 8 ? Simd::byte_offset : Layout::origin;
  const int64_t bytes = term.weights.panel_bytes;
  const char* weights = term.weights.panels + panel * bytes;
  Ahead ahead = fetch.ahead(weights + Layout::codes(begin), fetch.next,
                            (Layout::codes(end) - Layout::codes(begin)) / kLine, bytes);
  const PreparedRows prepared(term.prepared, term.inputs);
  const int64_t stride = prepared.stride();
  Sums<rows, panels> total;
  load_sums<rows, panels>(sums, kTileOutputs, total);
  const RowGroup* of_rows = prepared.groups(row) + begin;
  for (int64_t group = begin; group < end; ++group, ++of_rows) {
    WholeSums<Layout::bits, rows, panels> whole;
    whole.clear();
#pragma GCC unroll 2
    for (int pass = 0; pass < whole.passes; ++pass) {
      if (pass) {
        whole.shift();
        // GCC would keep all codes in registers, of which the tallest tile needs every one for its sums.
        if constexpr (rows == Simd::grid_rows) asm volatile("" ::: "memory");
      }
      Codes stream{weights + Layout::codes(group), bytes};
      const int8_t* x = of_rows->wholes + pass * 4;
#pragma GCC unroll Simd::integer_unroll
      for (int64_t unit = 0; unit < kGroup / kUnit; ++unit, stream.at += Codes::step, x += 2 * kUnit) {
        for (int64_t line = 0; pass == 0 && line < Codes::step; line += kLine) prefetch_line<panels>(ahead);
        Simd::Bytes codes[2][vectors];
#pragma GCC unroll 32
        for (int v = 0; v < vectors; ++v) stream.load(v, codes[0][v], codes[1][v]);
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 16
          for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
            for (int byte = 0; byte < whole.bytes; ++byte) {
              const Simd::Bytes value = Simd::broadcast(x + r * stride + half * kUnit + byte * 4);
#pragma GCC unroll 32
              for (int v = 0; v < vectors; ++v) whole.add(byte, r, v, codes[half][v], value);
            }
          }
        }
      }
    }
    prefetch_line<panels>(ahead);
    const GridNumbers<storage, panels, offset> numbers(weights, bytes, group);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const RowGroup& of_row = *reinterpret_cast<const RowGroup*>(of_rows->wholes + r * stride);
      const Simd::F scale = Simd::set1(of_row.scale);
#pragma GCC unroll 32
      for (int v = 0; v < vectors; ++v) {
        total[r][v] = numbers.add(Simd::mul(scale, whole.whole(r, v)), of_row.sum, v, total[r][v]);
      }
    }
  }
  store_sums<rows, panels>(total, sums, kTileOutputs);
}

}  // namespace
}  // namespace zweave
