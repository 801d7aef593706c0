// Attention over a paged cache, softmax online.
//
// Keys are taken in chunks of 64 aligned to absolute positions, and each query passes over its own chunks in
// order. A tile is a few neighbouring tokens of one sequence times the query heads that share a key-value
// head; it shares the loads and the packing of the keys, and nothing that a query's result depends on.
#pragma once

#include <cstring>

#include "cpu/exp.h"
#include "cpu/kernels.h"
#include "cpu/matmul.h"
#include "cpu/pack_panels.h"
#include "cpu/rows.h"

namespace zweave {
namespace {

constexpr int64_t kChunk = 64;

constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// Where a tile keeps what it works on; every part begins on a cache line.
template <class T>
struct AttentionScratch {
  int64_t rows, padded;  // padded: head_size up to whole vectors
  int64_t bytes = 0;
  int64_t q, keys, values, scores, output, largest, total;

  AttentionScratch(int64_t tokens, int64_t group, int64_t head_size)
      : rows(tokens * group), padded(round_up(head_size, Simd::width)) {
    q = take(rows * head_size * sizeof(T));
    keys = take(kChunk * divide_up(head_size, kGroup<T>) * 4);
    values = take(kChunk * padded * sizeof(T));
    scores = take(rows * kChunk * 4);
    output = take(rows * padded * 4);
    largest = take(rows * 4);
    total = take(rows * 4);
  }
  int64_t take(int64_t size) {
    const int64_t at = bytes;
    bytes += round_up(size, 64);
    return at;
  }
};

template <class T>
int64_t attention_scratch(int64_t tokens, int64_t group, int64_t head_size) {
  return AttentionScratch<T>(tokens, group, head_size).bytes;
}

// output[r] += sum over keys [begin, end) of probability[r][key] * values[key].
template <class T, int rows, int vectors>
void add_values(const float* probability, const T* const* values, int64_t begin, int64_t end, int64_t column,
                float* output, int64_t output_stride) {
  Simd::F sum[rows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v)
      sum[r][v] = Simd::load(output + r * output_stride + column + v * Simd::width);
  }
  for (int64_t key = begin; key < end; ++key) {
    Simd::F value[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) value[v] = Simd::load(values[key] + column + v * Simd::width);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const Simd::F p = Simd::set1(probability[r * kChunk + key]);
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sum[r][v] = Simd::fma(p, value[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v)
      Simd::store(output + r * output_stride + column + v * Simd::width, sum[r][v]);
  }
}

template <class T, int rows = Simd::value_rows>
void add_values_rows(int64_t count, const float* probability, const T* const* values, int64_t begin,
                     int64_t end, float* output, int64_t padded) {
  if (count == rows) {
    constexpr int vectors = Simd::value_vectors;
    int64_t column = 0;
    for (; column + vectors * Simd::width <= padded; column += vectors * Simd::width) {
      add_values<T, rows, vectors>(probability, values, begin, end, column, output, padded);
    }
    for (; column < padded; column += Simd::width) {
      add_values<T, rows, 1>(probability, values, begin, end, column, output, padded);
    }
    return;
  }
  if constexpr (rows > 1) {
    add_values_rows<T, rows - 1>(count, probability, values, begin, end, output, padded);
  }
}

// Turns a row of raw scores into probabilities over keys [begin, end) of the chunk, zero elsewhere, and
// brings the row's running maximum, sum and output to the new maximum.
inline void softmax_row(float* score, int64_t begin, int64_t end, float scale, float* largest, float* total,
                        float* output, int64_t padded) {
  const float infinity = __builtin_inff();
  for (int64_t i = 0; i < begin; ++i) score[i] = -infinity;
  for (int64_t i = end; i < kChunk; ++i) score[i] = -infinity;
  // Only the keys asked for are scaled: -inf times a scale of zero would be NaN.
  for_vectors(end - begin, [&](int64_t i, int64_t n) {
    store(score + begin + i, Simd::mul(load(score + begin + i, n), Simd::set1(scale)), n);
  });
  Simd::F best = Simd::set1(*largest);
  for (int64_t i = 0; i < kChunk; i += Simd::width) best = Simd::max(best, Simd::load(score + i));
  const float now = Simd::reduce_max(best);
  const Simd::F shift = Simd::set1(now);
  Simd::F sum = Simd::set1(0);
  for (int64_t i = 0; i < kChunk; i += Simd::width) {
    const Simd::F p = exp(Simd::sub(Simd::load(score + i), shift));
    Simd::store(score + i, p);
    sum = Simd::add(sum, p);
  }
  if (now != *largest) {
    float factors[Simd::width];
    Simd::store(factors, exp(Simd::set1(*largest - now)));
    const Simd::F factor = Simd::set1(factors[0]);
    for (int64_t i = 0; i < padded; i += Simd::width) {
      Simd::store(output + i, Simd::mul(Simd::load(output + i), factor));
    }
    *total *= factors[0];
    *largest = now;
  }
  *total += Simd::reduce_add(sum);
}

struct KeyRange {
  int64_t begin, end;
};

// The keys that a token sees: positions, within [first, first + kChunk) and counted from `first`.
template <class T>
KeyRange seen(const Attention<T>& a, int64_t token, int64_t first) {
  const int64_t end = int64_t(a.position[token]) + 1 - first;
  const int64_t begin = a.window > 0 && end > a.window ? end - a.window : -first;
  return {begin > 0 ? begin : 0, end < kChunk ? end : kChunk};
}

template <class T>
void attention(const Attention<T>& a, int64_t token_begin, int64_t token_end, int64_t kv_head,
               void* scratch) {
  const int64_t group = a.heads / a.kv_heads, size = a.head_size;
  const AttentionScratch<T> part(token_end - token_begin, group, size);
  const auto at = [&](int64_t offset) { return static_cast<char*>(scratch) + offset; };
  T* q = reinterpret_cast<T*>(at(part.q));
  T* packed_keys = reinterpret_cast<T*>(at(part.keys));
  T* padded_values = reinterpret_cast<T*>(at(part.values));
  float* scores = reinterpret_cast<float*>(at(part.scores));
  float* output = reinterpret_cast<float*>(at(part.output));
  float* largest = reinterpret_cast<float*>(at(part.largest));
  float* total = reinterpret_cast<float*>(at(part.total));

  int64_t tile_begin = INT64_MAX, tile_end = 0;
  for (int64_t token = token_begin; token < token_end; ++token) {
    const T* from = a.q + token * a.q_stride + kv_head * group * size;
    std::memcpy(q + (token - token_begin) * group * size, from, group * size * sizeof(T));
    const int64_t end = int64_t(a.position[token]) + 1;
    const int64_t begin = a.window > 0 && end > a.window ? end - a.window : 0;
    tile_begin = begin < tile_begin ? begin : tile_begin;
    tile_end = end > tile_end ? end : tile_end;
  }
  for (int64_t i = 0; i < part.rows * part.padded; ++i) output[i] = 0;
  for (int64_t row = 0; row < part.rows; ++row) {
    largest[row] = -__builtin_inff();
    total[row] = 0;
  }

  const int32_t* blocks = a.block_table + a.sequence[token_begin] * a.block_table_stride;
  const int64_t panel_size = divide_up(size, kGroup<T>) * kPanel * kGroup<T>;
  Matmul<T> product{};
  product.terms[0].x = q;
  product.terms[0].x_stride = size;
  product.terms[0].weights.panels = reinterpret_cast<const char*>(packed_keys);
  product.terms[0].weights.panel_bytes = panel_size * sizeof(T);
  product.terms[0].inputs = size;
  product.num_terms = 1;
  product.outputs = kChunk;
  product.y_f32 = scores;
  product.y_stride = kChunk;

  for (int64_t first = tile_begin / kChunk * kChunk; first < tile_end; first += kChunk) {
    const T* keys[kChunk];
    const T* values[kChunk];
    const int64_t left = tile_end - first;
    const int64_t present = left < kChunk ? left : kChunk;
    // Positions before the tile's first key may lie in blocks that are given back: they repeat that key.
    for (int64_t i = 0; i < present; ++i) {
      const int64_t position = first + i < tile_begin ? tile_begin : first + i;
      const int64_t block = blocks[position / a.block_size];
      const int64_t row = (block * a.kv_heads + kv_head) * a.block_size + position % a.block_size;
      keys[i] = a.k_cache + row * size;
      values[i] = a.v_cache + row * size;
    }
    for (int64_t panel = 0; panel * kPanel < present; ++panel) {
      const int64_t rows = present - panel * kPanel;
      pack_panel(keys + panel * kPanel, rows < kPanel ? rows : kPanel, size,
                 packed_keys + panel * panel_size);
    }
    if (part.padded != size) {
      for (int64_t i = 0; i < present; ++i) {
        T* copy = padded_values + i * part.padded;
        for (int64_t j = 0; j < part.padded; ++j) copy[j] = j < size ? values[i][j] : T{};
        values[i] = copy;
      }
    }
    matmul(product, 0, part.rows, 0, divide_up(present, kPanel));

    for (int64_t token = token_begin; token < token_end; ++token) {
      const KeyRange range = seen(a, token, first);
      if (range.begin >= range.end) continue;
      for (int64_t row = (token - token_begin) * group; row < (token - token_begin + 1) * group; ++row) {
        softmax_row(scores + row * kChunk, range.begin, range.end, a.scale, largest + row, total + row,
                    output + row * part.padded, part.padded);
      }
    }
    // Rows that see the same keys go together. Keys that a row does not see never enter its sum, not even
    // with probability zero: they may hold NaN.
    for (int64_t token = token_begin; token < token_end;) {
      const KeyRange range = seen(a, token, first);
      int64_t next = token + 1;
      while (next < token_end) {
        const KeyRange other = seen(a, next, first);
        if (other.begin != range.begin || other.end != range.end) break;
        ++next;
      }
      const int64_t row_end = (next - token_begin) * group;
      for (int64_t row = (token - token_begin) * group; row < row_end && range.begin < range.end;) {
        const int64_t count = row_end - row < Simd::value_rows ? row_end - row : Simd::value_rows;
        add_values_rows<T>(count, scores + row * kChunk, values, range.begin, range.end,
                           output + row * part.padded, part.padded);
        row += count;
      }
      token = next;
    }
  }

  for (int64_t row = 0; row < part.rows; ++row) {
    const int64_t token = token_begin + row / group, head = kv_head * group + row % group;
    const Simd::F inverse = Simd::set1(1.0f / total[row]);
    for_vectors(size, [&](int64_t i, int64_t n) {
      const Simd::F value = Simd::load(output + row * part.padded + i);
      store(a.y + token * a.y_stride + head * size + i, Simd::mul(value, inverse), n);
    });
  }
}

}  // namespace
}  // namespace zweave
