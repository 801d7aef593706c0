// What every instruction set provides: one table of functions on raw pointers.
//
// Strides count elements. A function works on the half-open range that it is given, so the caller decides how
// threads share the work. No result depends on that.
#pragma once

#include <cstdint>

// GCC is the compiler whose `#pragma GCC target` the vector files rely on.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define ZWEAVE_X86 1
#endif

namespace zweave {

// The upper half of a float32.
struct bf16 {
  uint16_t bits;
};

// Outputs of one packed panel; kernels/layout/packed.py shows the layout. One pack of inputs fills a cache
// line.
constexpr int64_t kPanel = 16;

// Inputs of an output that lie side by side in a panel: the pairs of bf16 that one instruction multiplies.
template <class T>
constexpr int64_t kPack = sizeof(T) == 2 ? 2 : 1;

// Rows that a product works on together: few enough for their inputs to stay in the second-level cache.
constexpr int64_t kRows = 96;

// Rows up to which a product takes as long as reading its weights, or its keys.
constexpr int64_t kMemoryBoundRows = 12;

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Stride of a buffer's rows. Rows a multiple of 2 KiB apart would compete for the same sets of the
// first-level cache, and a product reads a dozen of them at once.
template <class T>
constexpr int64_t row_stride(int64_t width) {
  return width * sizeof(T) % 2048 == 0 ? width + int64_t(64 / sizeof(T)) : width;
}

// How a packed matrix holds its weights: in the dtype of the activations, as integers with scales which are
// multiplied by integers, or on a grid (grid_layout.h) as they arrived.
enum class Storage : uint8_t { plain, int8, int4, grid4, grid4_minimum, grid4_wide, grid8 };

// Where two inputs of eight codes of four bits lie, 2 pair and 2 pair + 1: in these four bits of the lower
// and the upper half of a lane (kernels/layout/grid.py).
constexpr int nibble_of(int pair) { return pair % 2 * 2 + pair / 2; }

constexpr bool is_integer(Storage storage) { return storage == Storage::int8 || storage == Storage::int4; }
// Bits of a weight of a T's product, without its share of scales and minima.
template <class T>
constexpr int64_t bits_of(Storage storage) {
  if (storage == Storage::plain) return 8 * int64_t(sizeof(T));
  return storage == Storage::int8 || storage == Storage::grid8 ? 8 : 4;
}
// Whether a product reads something of its rows that has to be worked out first.
constexpr bool wants_prepared(Storage storage) { return storage != Storage::plain; }

// A packed matrix; kernels/layout/packed.py shows the layouts.
struct Weights {
  const char* panels;
  int64_t panel_bytes;  // from panel to panel
  Storage storage;
  const float* scales;   // [panels, scale_groups, kPanel] unless plain
  int64_t scale_groups;  // of a panel
  int64_t group;         // inputs that share a scale: whole blocks of prepared_rows.h, or all
};

// x W^T with W packed, or with the leading `inputs` columns of a plain packed matrix.
template <class T>
struct Term {
  const T* x;  // [T, inputs]
  int64_t x_stride;
  Weights weights;
  int64_t inputs;
  char* prepared;  // what this thread has prepared of x (prepared_rows.h); null if the weights are plain
};

// y = (sum of the terms and pages) * scale[slot] + bias, the last two where given. Plain terms and pages are
// one chain of additions, as if their inputs lay side by side; only the first term may have a grid, and
// integer weights come after all others.
template <class T>
struct Matmul {
  Term<T> terms[3];
  int64_t num_terms;
  const Term<T>* pages;  // further plain terms, of kPanel inputs each
  int64_t num_pages;
  int64_t outputs;
  T* y;          // [T, outputs], or null
  float* y_f32;  // the same in float32, where y is null
  int64_t y_stride;
  const T* bias;       // [outputs], or null
  const float* scale;  // [S, outputs], or null
  int64_t scale_stride;
  const int32_t* slot;  // [T]
  bool zero_base;       // rows in slot 0 become 0, whatever x and the scales are
  const void* next;     // what this thread reads afterwards, to be prefetched, or null
};

template <class T>
struct Norm {
  const T* x;  // [T, width]
  int64_t x_stride;
  float* residual;  // [T, width], or null: x is added to it, and it is what is normalised
  int64_t residual_stride;
  const T* weight;          // [width], or null
  const float* weight_f32;  // the same in float32, where weight is null
  T* y;                     // [T, width]
  int64_t y_stride;
  int64_t width;
  float eps;
};

template <class T>
struct Rope {
  T* x;  // [T, heads, head_size], in place
  int64_t x_stride;
  int64_t heads;
  int64_t head_size;
  const float* cos;  // [positions, head_size / 2]
  const float* sin;
  const int32_t* position;  // [T]
};

template <class T>
struct SiluMul {
  const T* gate;  // [T, width]
  int64_t gate_stride;
  const T* up;
  int64_t up_stride;
  T* y;
  int64_t y_stride;
  int64_t width;
};

struct Mix {
  const float* table;  // [E, width]
  int64_t table_stride;
  const float* alpha;  // [B, E]
  int64_t alpha_stride;
  float* y;  // [B, width], contiguous
  int64_t experts;
  int64_t width;
};

struct Greedy {
  const float* logits;  // [B, width]
  int64_t stride;
  int64_t width;
  int64_t* id;   // [B]
  bool* finite;  // [B]
};

template <class T>
struct Attention {
  const T* q;  // [T, heads, head_size]
  int64_t q_stride;
  const T* k_cache;  // of blocks as kv_layout.h has them
  const T* v_cache;
  const int32_t* block_table;  // [B, n]
  int64_t block_table_stride;
  const int32_t* sequence;  // [T]
  const int32_t* position;  // [T]
  T* y;                     // [T, heads, head_size]
  int64_t y_stride;
  int64_t heads;
  int64_t kv_heads;
  int64_t head_size;
  int64_t block_size;
  float scale;
  int64_t window;
};

// Tokens [begin, end) of one sequence at successive positions, under one key-value head.
struct AttentionItem {
  int64_t begin, end, kv_head;
};

template <class T>
struct TypedKernels {
  // Panels [begin, end) of `packed` from weight [outputs, inputs].
  void (*pack)(const T* weight, int64_t stride, int64_t outputs, int64_t inputs, T* packed, int64_t begin,
               int64_t end);
  void (*matmul)(const Matmul<T>&, int64_t row_begin, int64_t row_end, int64_t panel_begin,
                 int64_t panel_end);
  // Fills what a term reads of its rows (prepared_rows.h).
  void (*prepare_rows)(const Term<T>&, int64_t row_begin, int64_t row_end);
  void (*norm)(const Norm<T>&, int64_t row_begin, int64_t row_end);
  void (*rope)(const Rope<T>&, int64_t row_begin, int64_t row_end);
  void (*silu_mul)(const SiluMul<T>&, int64_t row_begin, int64_t row_end);
  // `scratch` is aligned to 64 and holds attention_scratch(tokens, query heads of a key-value head,
  // head_size) bytes, for the tokens of the longest item.
  void (*attention)(const Attention<T>&, const AttentionItem* items, int64_t count, void* scratch);
  int64_t (*attention_scratch)(int64_t tokens, int64_t group, int64_t head_size);
};

struct Kernels {
  const char* name;
  TypedKernels<float> f32;
  TypedKernels<bf16> b16;
  // Columns [begin, end) of every row.
  void (*mix)(const Mix&, int64_t rows, int64_t column_begin, int64_t column_end);
  void (*greedy)(const Greedy&, int64_t row_begin, int64_t row_end);
};

const Kernels& kernels_scalar();
#ifdef ZWEAVE_X86
const Kernels& kernels_avx2();
const Kernels& kernels_avx512_vnni();
const Kernels& kernels_avx512();
const Kernels& kernels_amx();
#endif

}  // namespace zweave
