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
void score_tile(const T* q, int64_t q_stride, int64_t groups, const Piece<T>* piece, float scale,
                Fetcher<T>& fetcher, float* scores) {
  constexpr int vectors = panels * kPanelVectors;
  Sums<rows, panels> sum;
  clear<rows, panels>(sum);
  const T* keys[panels];
  for (int i = 0; i < panels; ++i) keys[i] = piece[i].keys;
  for (int64_t k = 0; k < groups; ++k, q += kGroup<T>) {
    const int64_t at = k * kPanel * kGroup<T>;
    fetcher.step();
    decltype(Simd::weights(keys[0])) loaded[vectors];
#pragma GCC unroll 32
    for (int v = 0; v < vectors; ++v) {
      loaded[v] = Simd::weights(keys[v / kPanelVectors] + at + v % kPanelVectors * Simd::width * kGroup<T>);
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

// The same for any number of rows and the whole chunk. q is padded to whole groups.
template <class T>
void score(const T* q, int64_t q_stride, int64_t groups, int64_t rows, const Chunk<T>& chunk, float scale,
           Fetcher<T>& fetcher, float* scores) {
  // Few rows take twice the panels, for as many sums.
  constexpr int most_rows = Simd::max_rows<T>, few = most_rows / 2;
  for (int64_t row = 0; row < rows;) {
    const int64_t left = rows - row, count = divide_up(left, divide_up(left, most_rows));
    const auto tiles = [&]<int r, int most>() {
      for (int64_t i = 0; i < chunk.count; i += most) {
        const int64_t panels = chunk.count - i;
        with_rows<most>(panels < most ? panels : most, [&]<int p>() {
          score_tile<T, r, p>(q + row * q_stride, q_stride, groups, chunk.piece + i, scale, fetcher,
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

// output[r] += sum over the keys of a range of probability[r][key] * value[key], in some columns.
template <class T, int rows, int panels>
void value_tile(const Chunk<T>& chunk, KeyRange range, const T* probability, int64_t panel_size,
                int64_t column, Fetcher<T>& fetcher, float* output, int64_t output_stride) {
  constexpr int vectors = panels * kPanelVectors;
  constexpr int64_t group = kGroup<T>;
  Sums<rows, panels> sum;
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 32
    for (int v = 0; v < vectors; ++v) {
      sum[r][v] = Simd::load(output + r * output_stride + column * kPanel + v * Simd::width);
    }
  }
  // Calls body(weights, vector) for a group of keys.
  const auto each = [&](const T* at, auto body) {
#pragma GCC unroll 32
    for (int v = 0; v < vectors; ++v) {
      body(Simd::weights(at + v / kPanelVectors * panel_size + v % kPanelVectors * Simd::width * group), v);
    }
  };
  for (int64_t i = 0; i < chunk.count; ++i) {
    const Piece<T>& piece = chunk.piece[i];
    const int64_t last = piece.begin + piece.count, end = range.end < last ? range.end : last;
    int64_t key = range.begin > piece.begin ? range.begin : piece.begin;
    if (key >= end) continue;
    const T* at =
        piece.values + column * panel_size + (piece.offset + key - piece.begin) / group * kPanel * group;
    // A key beside one that the range leaves out goes alone: the other may be NaN.
    if constexpr (group == 2) {
      if (key % 2) {
        each(at, [&](auto w, int v) {
#pragma GCC unroll 16
          for (int r = 0; r < rows; ++r) {
            const Simd::F p = Simd::odd(Simd::broadcast(probability + r * kChunk + key - 1));
            sum[r][v] = Simd::fma(Simd::odd(w), p, sum[r][v]);
          }
        });
        ++key;
        at += kPanel * group;
      }
    }
    for (; key + group <= end; key += group, at += kPanel * group) {
      fetcher.step();
      decltype(Simd::weights(at)) loaded[vectors];
      each(at, [&](auto w, int v) { loaded[v] = w; });
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        const auto p = Simd::broadcast(probability + r * kChunk + key);
#pragma GCC unroll 32
        for (int v = 0; v < vectors; ++v) sum[r][v] = Simd::multiply_add(sum[r][v], loaded[v], p);
      }
    }
    if constexpr (group == 2) {
      if (key < end) {
        each(at, [&](auto w, int v) {
#pragma GCC unroll 16
          for (int r = 0; r < rows; ++r) {
            const Simd::F p = Simd::even(Simd::broadcast(probability + r * kChunk + key));
            sum[r][v] = Simd::fma(Simd::even(w), p, sum[r][v]);
          }
        });
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 32
    for (int v = 0; v < vectors; ++v) {
      Simd::store(output + r * output_stride + column * kPanel + v * Simd::width, sum[r][v]);
    }
  }
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
