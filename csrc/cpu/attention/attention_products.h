// The two products of attention over a chunk: queries with keys, probabilities with values. Both read panels
// as they lie in the cache, and every sum is one chain in the order of its inputs.
#pragma once

#include "cpu/attention/attention_chunk.h"
#include "cpu/gemm/matmul_tile.h"

namespace zweave {
namespace {

// From row to row of the scores; a panel that begins before the chunk or ends behind it stays within.
constexpr int64_t kScores = kPanel + kChunk + kPanel;

// scores[r][key] = scale * q[r] . key, for all keys of some panels.
template <class T, int rows, int panels>
void score_tile(const T* q, int64_t q_stride, int64_t packs, const Piece<T>* piece, float scale,
                Fetcher<T>& fetcher, float* scores) {
  constexpr int vectors = panels * kPanelVectors;
  Sums<rows, panels> sum;
  clear<rows, panels>(sum);
  const T* keys[panels];
  for (int i = 0; i < panels; ++i) keys[i] = piece[i].keys;
  for (int64_t k = 0; k < packs; ++k, q += kPack<T>) {
    const int64_t at = k * kPanel * kPack<T>;
    fetcher.step();
    decltype(Simd::weights(keys[0])) loaded[vectors];
#pragma GCC unroll 32
    for (int v = 0; v < vectors; ++v) {
      loaded[v] = Simd::weights(keys[v / kPanelVectors] + at + v % kPanelVectors * Simd::width * kPack<T>);
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const auto value = Simd::broadcast(q + r * q_stride);
#pragma GCC unroll 32
      for (int v = 0; v < vectors; ++v) sum[r][v] = Simd::multiply_add(sum[r][v], loaded[v], value);
    }
  }
  // In this order: what a panel holds beside the chunk's own keys is overwritten by its successor.
  const Simd::F by = Simd::set1(scale);
#pragma GCC unroll 32
  for (int v = 0; v < vectors; ++v) {
    float* to = scores + kPanel + piece[v / kPanelVectors].column() + v % kPanelVectors * Simd::width;
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) Simd::store(to + r * kScores, Simd::mul(sum[r][v], by));
  }
}

// The same for any number of rows and the whole chunk. q is padded to whole packs.
template <class T>
void score(const T* q, int64_t q_stride, int64_t packs, int64_t rows, const Chunk<T>& chunk, float scale,
           Fetcher<T>& fetcher, float* scores) {
  // Few rows take twice the panels, for as many sums.
  constexpr int most_rows = Simd::max_rows<T>, few = most_rows / 2;
  for (int64_t row = 0; row < rows;) {
    const int64_t left = rows - row, count = divide_up(left, divide_up(left, most_rows));
    const auto tiles = [&]<int r, int most>() {
      for (int64_t i = 0; i < chunk.count; i += most) {
        const int64_t panels = chunk.count - i;
        with_rows<most>(panels < most ? panels : most, [&]<int p>() {
          score_tile<T, r, p>(q + row * q_stride, q_stride, packs, chunk.piece + i, scale, fetcher,
                              scores + row * kScores);
        });
      }
    };
    if (count <= few) {
      with_rows<few>(count, [&]<int r>() { tiles.template operator()<r, 2 * Simd::tile_panels>(); });
    } else {
      with_rows<most_rows>(count, [&]<int r>() { tiles.template operator()<r, Simd::tile_panels>(); });
    }
    row += count;
  }
}

struct KeyRange {
  int64_t begin, end;
};

// sum[r][.] += probability[r][key] * value[key] for the keys that lie beside one another at `values`.
// multiply(sum, values, probabilities) says which of them: all, or one of a pair.
template <class T, int rows, int panels, class Multiply>
inline __attribute__((always_inline)) void add_keys(const T* values, int64_t panel_size, const T* probability,
                                                    Multiply multiply, Sums<rows, panels>& sum) {
  constexpr int vectors = panels * kPanelVectors;
  decltype(Simd::weights(values)) loaded[vectors];
#pragma GCC unroll 32
  for (int v = 0; v < vectors; ++v) {
    loaded[v] =
        Simd::weights(values + v / kPanelVectors * panel_size + v % kPanelVectors * Simd::width * kPack<T>);
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
    const auto p = Simd::broadcast(probability + r * kChunk);
#pragma GCC unroll 32
    for (int v = 0; v < vectors; ++v) sum[r][v] = multiply(sum[r][v], loaded[v], p);
  }
}

// output[r] += sum over the keys of a range of probability[r][key] * value[key], in some columns.
template <class T, int rows, int panels>
void value_tile(const Chunk<T>& chunk, KeyRange range, const T* probability, int64_t panel_size,
                int64_t column, Fetcher<T>& fetcher, float* output, int64_t output_stride) {
  constexpr int64_t pack = kPack<T>;
  const auto all = [](auto s, auto w, auto p) { return Simd::multiply_add(s, w, p); };
  const auto even = [](auto s, auto w, auto p) { return Simd::fma(Simd::even(w), Simd::even(p), s); };
  const auto odd = [](auto s, auto w, auto p) { return Simd::fma(Simd::odd(w), Simd::odd(p), s); };
  float* const first = output + column * kPanel;
  Sums<rows, panels> sum;
  load_sums<rows, panels>(first, output_stride, sum);
  for (int64_t i = 0; i < chunk.count; ++i) {
    const Piece<T>& piece = chunk.piece[i];
    const int64_t last = piece.begin + piece.count, end = range.end < last ? range.end : last;
    int64_t key = range.begin > piece.begin ? range.begin : piece.begin;
    if (key >= end) continue;
    const T* at =
        piece.values + column * panel_size + (piece.offset + key - piece.begin) / pack * kPanel * pack;
    const auto add = [&](int64_t from, auto multiply) __attribute__((always_inline)) {
      add_keys<T, rows, panels>(at, panel_size, probability + from, multiply, sum);
      at += kPanel * pack;
    };
    // Of a pair that the range cuts, one key is left out altogether: its value may be NaN.
    if constexpr (pack == 2) {
      if (key % 2) {
        add(key - 1, odd);
        ++key;
      }
    }
    for (; key + pack <= end; key += pack) {
      fetcher.step();
      add(key, all);
    }
    if constexpr (pack == 2) {
      if (key < end) add(key, even);
    }
  }
  store_sums<rows, panels>(sum, first, output_stride);
}

// The same for any number of rows and `columns` panels of columns.
template <class T>
void add_values(const Chunk<T>& chunk, KeyRange range, int64_t rows, const T* probability, int64_t panel_size,
                int64_t columns, Fetcher<T>& fetcher, float* output) {
  constexpr int panels = Simd::value_vectors / kPanelVectors;
  for (int64_t row = 0; row < rows;) {
    const int64_t left = rows - row, count = divide_up(left, divide_up(left, Simd::value_rows));
    with_rows<Simd::value_rows>(count, [&]<int r>() {
      const T* p = probability + row * kChunk;
      float* to = output + row * columns * kPanel;
      int64_t column = 0;
      for (; column + panels <= columns; column += panels) {
        value_tile<T, r, panels>(chunk, range, p, panel_size, column, fetcher, to, columns * kPanel);
      }
      for (; column < columns; ++column) {
        value_tile<T, r, 1>(chunk, range, p, panel_size, column, fetcher, to, columns * kPanel);
      }
    });
    row += count;
  }
}

}  // namespace
}  // namespace zweave
