// The register tile of a product: some rows under one or two panels, over a range of packs of inputs.
#pragma once

#include "cpu/simd/kernels.h"
#include "cpu/simd/vectors.h"

namespace zweave {
namespace {

constexpr int kPanelVectors = int(kPanel) / Simd::width;
constexpr int64_t kTileOutputs = Simd::tile_panels * kPanel;
constexpr int64_t kLine = 64;

template <class T>
int64_t packs_of(const Term<T>& term) {
  return divide_up(term.inputs, kPack<T>);
}

// Where a tile prefetches the weights of the next one: `at` advances by `step` bytes for each line that the
// tile reads of its own; the panels lie `apart` bytes from one another. A line that is there already costs
// little.
struct Ahead {
  const char* at;
  int64_t step, apart;
};

// The share of a tile's prefetches that one of its blocks of rows makes, so that memory is busy while all
// blocks multiply. next: where the weights that come next begin in the first term, or null: nothing is
// prefetched.
struct Fetch {
  const char* next;
  int64_t block, blocks;

  // For a block that reads `lines` lines from `here` on, of panels that lie `bytes` apart; `then` comes next.
  Ahead ahead(const char* here, const char* then, int64_t lines, int64_t bytes) const {
    if (!next) return {here, 0, 0};
    const int64_t step = divide_up(kLine, blocks);
    return {then + block * lines * step, step, bytes};
  }
};

inline void prefetch(const char* at) { __builtin_prefetch(at, 0, 2); }

// The line that is next, of each panel.
template <int panels>
inline void prefetch_line(Ahead& ahead) {
  prefetch(ahead.at);
  if constexpr (panels > 1) prefetch(ahead.at + ahead.apart);
  ahead.at += ahead.step;
}

// Plain weights of a tile, pack by pack.
template <class T>
struct Stream {
  const char* at;
  int64_t panel_bytes;

  auto weights(int v) const {
    const char* from = at + (v / kPanelVectors) * panel_bytes + (v % kPanelVectors) * Simd::width * 4;
    return Simd::weights(reinterpret_cast<const T*>(from));
  }
};

template <int rows, int panels>
using Sums = Simd::F[rows][panels * kPanelVectors];

template <int rows, int panels>
inline __attribute__((always_inline)) void clear(Sums<rows, panels>& sum) {
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 32
    for (int v = 0; v < panels * kPanelVectors; ++v) sum[r][v] = Simd::set1(0);
  }
}

// The sums of a tile from or to memory, `stride` values from row to row.
template <int rows, int panels>
inline __attribute__((always_inline)) void load_sums(const float* at, int64_t stride,
                                                     Sums<rows, panels>& sum) {
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 32
    for (int v = 0; v < panels * kPanelVectors; ++v)
      sum[r][v] = Simd::load(at + r * stride + v * Simd::width);
  }
}

template <int rows, int panels>
inline __attribute__((always_inline)) void store_sums(const Sums<rows, panels>& sum, float* at,
                                                      int64_t stride) {
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 32
    for (int v = 0; v < panels * kPanelVectors; ++v)
      Simd::store(at + r * stride + v * Simd::width, sum[r][v]);
  }
}

// sum[r][.] += x[row + r] W^T over packs [begin, end) of one term; `stream` stands at `begin`.
template <class T, int rows, int panels>
inline __attribute__((always_inline)) void accumulate(const Term<T>& term, int64_t row, int64_t begin,
                                                      int64_t end, Stream<T>& stream, Ahead ahead,
                                                      Sums<rows, panels>& sum) {
  constexpr int vectors = panels * kPanelVectors;
  const int64_t whole = term.inputs / kPack<T>, last = end < whole ? end : whole;
  const T* x = term.x + row * term.x_stride + begin * kPack<T>;
  for (int64_t k = begin; k < last; ++k, stream.at += kLine, x += kPack<T>) {
    prefetch_line<panels>(ahead);
    decltype(stream.weights(0)) loaded[vectors];
#pragma GCC unroll 32
    for (int v = 0; v < vectors; ++v) loaded[v] = stream.weights(v);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const auto value = Simd::broadcast(x + r * term.x_stride);
#pragma GCC unroll 32
      for (int v = 0; v < vectors; ++v) sum[r][v] = Simd::multiply_add(sum[r][v], loaded[v], value);
    }
  }
  if constexpr (kPack<T> == 2) {
    if (last < end) {
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        const auto value = Simd::broadcast_last(x + r * term.x_stride);
#pragma GCC unroll 32
        for (int v = 0; v < vectors; ++v) {
          sum[r][v] = Simd::multiply_add(sum[r][v], stream.weights(v), value);
        }
      }
      stream.at += kLine;
    }
  }
}

// Calls body.operator()<count>() for a row count of at most `rows` known only at run time.
template <int rows, class Body>
void with_rows(int64_t count, Body body) {
  if (count == rows) return body.template operator()<rows>();
  if constexpr (rows > 1) with_rows<rows - 1>(count, body);
}

// Turns the sums [count, kTileOutputs] of rows from `row` on into outputs.
template <class T, int panels>
void finish(const Matmul<T>& m, int64_t row, int64_t count, int64_t panel, const float* sums) {
  const int64_t first = panel * kPanel;
  const int64_t n = m.outputs - first < panels * kPanel ? m.outputs - first : panels * kPanel;
  for (int64_t r = 0; r < count; ++r, ++row, sums += kTileOutputs) {
    const float* scale = m.scale ? m.scale + m.slot[row] * m.scale_stride + first : nullptr;
    const int64_t at = row * m.y_stride + first;
    const bool zero = m.zero_base && m.slot[row] == 0;
    for_vectors(n, [&](int64_t i, int64_t part) {
      Simd::F sum = Simd::load(sums + i);
      if (scale) sum = Simd::mul(sum, load(scale + i, part));
      if (zero) sum = Simd::set1(0);
      if (m.bias) sum = Simd::add(sum, load(m.bias + first + i, part));
      if (m.y_f32) {
        store(m.y_f32 + at + i, sum, part);
      } else {
        store(m.y + at + i, sum, part);
      }
    });
  }
}

}  // namespace
}  // namespace zweave
