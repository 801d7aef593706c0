// The product of a few tokens with one or two weight matrices, as the host describes it to the kernel.
//
//   y[t, m] = scale[slot[t], m] (weight_0[m] . x_0[t]) + weight_1[m] . x_1[t] + bias[m]
//
// Raw pointers and plain integers alone: the CUDA launch and the emulator of the tests share this header.
#pragma once

#include <cstdint>

namespace zweave::cuda {

// The bit pattern of a bfloat16.
using Bf16 = uint16_t;

// weight [outputs, inputs] and x [tokens, inputs]; a stride is the number of values between two rows.
struct Term {
  const Bf16* weight;
  int64_t weight_stride;
  const Bf16* x;
  int64_t x_stride;
  int inputs;
};

struct DecodeProduct {
  Term terms[2];
  int num_terms;
  Bf16* y;  // [tokens, outputs]
  int64_t y_stride;
  int tokens;
  int outputs;
  const float* scale;  // [slots, outputs] for a product of one term, or null
  int64_t scale_stride;
  const int32_t* slot;  // [tokens], or null; a token whose slot is not one of `slots` becomes NaN
  int slots;
  const Bf16* bias;  // [outputs], or null
  bool skips_base;   // slot 0 is the base model: its scale is taken as 0, its second term left out
  bool follows;      // x of the last term is written by the launch before, which may still run
};

// Operands of a factored linear (w null), of a delta linear, or of a plain one (vt, u, scale, slot and hidden
// null, rank and slots 0), letters as in kernels/svf_linear.py.
struct SvfOperands {
  const Bf16* x;  // [tokens, inputs]
  int64_t x_stride;
  const Bf16* w;  // [outputs, inputs], or null
  int64_t w_stride;
  const Bf16* vt;  // [rank, inputs]
  int64_t vt_stride;
  const Bf16* u;  // [outputs, rank]
  int64_t u_stride;
  const float* scale;  // [slots, rank]
  int64_t scale_stride;
  const int32_t* slot;  // [tokens]
  const Bf16* bias;     // [outputs], or null
  Bf16* hidden;         // [tokens, rank], what the first product leaves to the second
  Bf16* y;              // [tokens, outputs]
  int tokens, outputs, inputs, rank, slots;
};

// hidden[t] = scale[slot[t]] * (Vt x[t])
inline DecodeProduct hidden_product(const SvfOperands& a) {
  DecodeProduct p = {};
  p.terms[p.num_terms++] = {a.vt, a.vt_stride, a.x, a.x_stride, a.inputs};
  p.y = a.hidden;
  p.y_stride = p.outputs = a.rank;
  p.tokens = a.tokens;
  p.scale = a.scale;
  p.scale_stride = a.scale_stride;
  p.slot = a.slot;
  p.slots = a.slots;
  p.skips_base = a.w != nullptr;
  return p;
}

// y[t] = W x[t] + U hidden[t] + bias, W x only where there is a W
inline DecodeProduct output_product(const SvfOperands& a) {
  DecodeProduct p = {};
  if (a.w) p.terms[p.num_terms++] = {a.w, a.w_stride, a.x, a.x_stride, a.inputs};
  if (a.u) p.terms[p.num_terms++] = {a.u, a.u_stride, a.hidden, a.rank, a.rank};
  p.y = a.y;
  p.y_stride = p.outputs = a.outputs;
  p.tokens = a.tokens;
  p.slot = a.slot;
  p.slots = a.slots;
  p.bias = a.bias;
  p.skips_base = a.w != nullptr;
  p.follows = a.rank > 0;
  return p;
}

// Which instance of the kernel runs a product.
struct DecodeConfig {
  int row_warps;    // of a block's 8 warps, those that lie side by side along the outputs, 16 outputs each
  int token_tiles;  // tiles of 8 tokens
  int terms;
  bool aligned;  // every row of weights and tokens begins at a multiple of 16 bytes and ends at one
};

inline bool is_aligned(const Bf16* rows, int64_t stride) {
  return reinterpret_cast<uintptr_t>(rows) % 16 == 0 && stride % 8 == 0;
}

// The order in which a row is summed follows from `row_warps`, which must therefore depend on the weights
// alone. Many outputs to a block read the tokens less often, as long as there are blocks enough for a data
// centre chip.
inline DecodeConfig decode_config(const DecodeProduct& p) {
  constexpr int kBlocks = 112;
  DecodeConfig config = {1, p.tokens <= 8 ? 1 : p.tokens <= 16 ? 2 : 4, p.num_terms, true};
  for (int i = 0; i < p.num_terms; ++i) {
    const Term& term = p.terms[i];
    config.aligned &= term.inputs % 8 == 0 && is_aligned(term.weight, term.weight_stride) &&
                      is_aligned(term.x, term.x_stride);
  }
  if (!config.aligned) return config;
  while (config.row_warps < 4 && p.outputs >= 2 * config.row_warps * 16 * kBlocks) config.row_warps *= 2;
  return config;
}

}  // namespace zweave::cuda
