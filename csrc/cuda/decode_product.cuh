// The kernel of decode_product.h. With a few tokens it is bound by reading the weights from memory.
//
// A warp multiplies 16 outputs by 8 tokens with mma.sync: weights are the left operand, tokens the right one.
// The 16 inputs of an instruction may be any 16, as long as both operands agree on them. So a lane takes
// eight neighbouring inputs of its row, one vector, and feeds two instructions with it: no transposition, no
// ldmatrix. It copies its vectors to slots of its own in shared memory and is the only one to read them
// there: the pipeline has no barrier in it.
//
// The chunks of 32 inputs are dealt to the `kSplits` warps that share an output, chunk c to warp c % kSplits,
// and their sums are added in the order of the warps. No token has a part in that order.
#pragma once

#include "cuda/decode_product.h"
#include "cuda/decode_traits.h"
#include "cuda/primitives.cuh"

namespace zweave::cuda {

// Where a thread stands in its block, and the block in the product.
template <class Traits>
struct ThreadTile {
  int warp = threadIdx.x / 32;
  int lane = threadIdx.x % 32;
  int group = lane / 4;
  int quad = lane % 4;
  int row_warp = warp % Traits::kRowWarps;
  int split = warp / Traits::kRowWarps;
  // Blocks that share weights are neighbours in time.
  int first_token = blockIdx.x * Traits::kTokens;
  int first_row = blockIdx.y * Traits::kRows;
};

// What a lane reads of one row of a matrix: every `kStride`-th vector from `start` on, while `left` inputs
// last.
template <class Traits>
struct Row {
  static constexpr int kStride = Traits::kSplits * Traits::kChunk;
  const Bf16* start;
  int left;

  // Copies the vector of one of the warp's chunks to a slot; inputs outside the matrix are zero and never
  // read.
  template <void (*copy_vector)(Vector*, const void*, int)>
  __device__ void copy(Vector* slot, int chunk) const {
    const int k = chunk * kStride;
    if constexpr (Traits::kAligned) {
      copy_vector(slot, start + k, k < left ? 16 : 0);
    } else {
      uint32_t value[8];
      for (int i = 0; i < 8; ++i) value[i] = k + i < left ? start[k + i] : 0;
      *slot = Vector{value[0] | value[1] << 16, value[2] | value[3] << 16, value[4] | value[5] << 16,
                     value[6] | value[7] << 16};
    }
  }
};

// The rows of a lane in one term, and the number of its warp's chunks.
template <class Traits>
struct Rows {
  Row<Traits> weights[2];
  Row<Traits> tokens[Traits::kTokenTiles];
  int chunks;

  __device__ Rows(const DecodeProduct& p, const Term& term, const ThreadTile<Traits>& tile) {
    const int first = tile.split * Traits::kChunk + tile.quad * 8;
    const auto row_of = [&](const Bf16* matrix, int64_t stride, int row, int rows) -> Row<Traits> {
      return {keep_in_register(matrix + (row < rows ? row * stride : 0) + first),
              keep_in_register(row < rows ? term.inputs - first : 0)};
    };
    const int row = tile.first_row + tile.row_warp * 16 + tile.group;
    const int token = tile.first_token + tile.group;
    for (int i = 0; i < 2; ++i) weights[i] = row_of(term.weight, term.weight_stride, row + i * 8, p.outputs);
    for (int i = 0; i < Traits::kTokenTiles; ++i) {
      tokens[i] = row_of(term.x, term.x_stride, token + i * 8, p.tokens);
    }
    const int all = (term.inputs + Traits::kChunk - 1) / Traits::kChunk;
    chunks = (all - tile.split + Traits::kSplits - 1) / Traits::kSplits;
  }
};

// The chunks of a warp one after the other, those of the second term after those of the first.
template <class Traits>
class Chunks {
 public:
  __device__ Chunks(const DecodeProduct& p, const ThreadTile<Traits>& tile)
      : first_(p, p.terms[0], tile), last_(p, p.terms[Traits::kTerms - 1], tile) {
    if (p.follows) dependent_ = total() - last_.chunks;
  }

  __device__ int count(int term) const { return term == 0 ? first_.chunks : last_.chunks; }
  __device__ int total() const { return Traits::kTerms == 1 ? first_.chunks : first_.chunks + last_.chunks; }

  __device__ void copy_weights(int chunk, Vector* slot) const {
    for (int i = 0; i < 2; ++i) copy<&cp_async_cg>(first_.weights[i], last_.weights[i], chunk, slot + i * 32);
  }

  // Weights never change, but the tokens of the last term may still be being written.
  __device__ void copy_tokens(int chunk, Vector* slot) const {
    if (chunk == dependent_) wait_on_dependency();
    for (int i = 0; i < Traits::kTokenTiles; ++i) {
      copy<&cp_async_ca>(first_.tokens[i], last_.tokens[i], chunk, slot + (2 + i) * 32);
    }
  }

 private:
  template <void (*copy_vector)(Vector*, const void*, int)>
  __device__ void copy(const Row<Traits>& first, const Row<Traits>& last, int chunk, Vector* slot) const {
    const bool is_last = Traits::kTerms == 2 && chunk >= first_.chunks;
    const Row<Traits> row = is_last ? last : first;
    row.template copy<copy_vector>(slot, is_last ? chunk - first_.chunks : chunk);
  }

  Rows<Traits> first_, last_;
  int dependent_ = -1;
};

template <class Traits>
using Sums = float[Traits::kTerms][Traits::kTokenTiles][4];

// One chunk: sum += weights [16, 32] tokens [8, 32]^T for each tile of tokens.
template <int token_tiles>
__device__ void multiply_chunk(const Vector* slot, float (&sum)[token_tiles][4]) {
  const Vector low = slot[0], high = slot[32];
  for (int i = 0; i < token_tiles; ++i) {
    const Vector token = slot[(2 + i) * 32];
    mma_m16n8k16(sum[i], low.x, high.x, low.y, high.y, token.x, token.y);
    mma_m16n8k16(sum[i], low.z, high.z, low.w, high.w, token.z, token.w);
  }
}

// Begins the copies of a warp's first chunks. slots: the lane's own, `kStages` of them.
template <class Traits>
__device__ void fill(const Chunks<Traits>& chunks, Vector* slots) {
  const int total = chunks.total();
  // All weights first: where the tokens have to be waited for, these are under way meanwhile.
  for (int i = 0; i < Traits::kAhead; ++i) {
    if (i < total) chunks.copy_weights(i, slots + i * Traits::kStage);
  }
  for (int i = 0; i < Traits::kAhead; ++i) {
    if (i < total) chunks.copy_tokens(i, slots + i * Traits::kStage);
    cp_async_commit();
  }
}

// A lane's sums over all chunks of its warp, the first of which are under way.
template <class Traits>
__device__ void accumulate(const Chunks<Traits>& chunks, Vector* slots, Sums<Traits>& sums) {
  constexpr int kAhead = Traits::kAhead;
  const int total = chunks.total();
  int chunk = 0, stage = 0;
#pragma unroll
  for (int term = 0; term < Traits::kTerms; ++term) {
    for (const int end = chunk + chunks.count(term); chunk < end; ++chunk) {
      cp_async_wait<kAhead - 1>();
      if (chunk + kAhead < total) {
        Vector* emptied = slots + (stage == 0 ? kAhead : stage - 1) * Traits::kStage;
        chunks.copy_weights(chunk + kAhead, emptied);
        chunks.copy_tokens(chunk + kAhead, emptied);
      }
      cp_async_commit();
      multiply_chunk(slots + stage * Traits::kStage, sums[term]);
      stage = stage == kAhead ? 0 : stage + 1;
    }
  }
}

// Calls visit(token, row) for the outputs of the block's tile that a thread finishes.
template <class Traits, class Visit>
__device__ void for_each_output(const DecodeProduct& p, const ThreadTile<Traits>& tile, Visit visit) {
  for (int i = threadIdx.x; i < Traits::kRows * Traits::kTokens; i += Traits::kThreads) {
    const int row = i % Traits::kRows, token = i / Traits::kRows;
    if (tile.first_row + row < p.outputs && tile.first_token + token < p.tokens) visit(token, row);
  }
}

__device__ inline bool is_known(const DecodeProduct& p, int slot) { return slot >= 0 && slot < p.slots; }

// Brings near what `finish` will read, while the first copies are under way.
template <class Traits>
__device__ void prefetch_tables(const DecodeProduct& p, const ThreadTile<Traits>& tile) {
  for_each_output(p, tile, [&](int token, int row) {
    const int m = tile.first_row + row;
    if (p.bias) prefetch(p.bias + m);
    if (!p.scale) return;
    const int slot = p.slot[tile.first_token + token];
    if (is_known(p, slot)) prefetch(p.scale + slot * p.scale_stride + m);
  });
}

// What a token and an output make of their sums.
template <class Traits>
__device__ Bf16 finish(const DecodeProduct& p, int token, int output, const float (&sum)[Traits::kTerms]) {
  const int slot = p.slot ? p.slot[token] : 0;
  if (p.slot && !is_known(p, slot)) return to_bf16(not_a_number());
  const bool is_base = p.skips_base && slot == 0;
  float value = sum[0];
  // No arithmetic with what is left out: neither a NaN in it nor the sign of a zero may show.
  if (p.scale) value = is_base ? 0.0f : value * p.scale[slot * p.scale_stride + output];
  if constexpr (Traits::kTerms == 2) {
    if (!is_base) value += sum[1];
  }
  if (p.bias) value += to_float(p.bias[output]);
  return to_bf16(value);
}

// Adds the warps' sums in their order and stores a block's part of y.
template <class Traits>
__device__ void reduce(const DecodeProduct& p, const ThreadTile<Traits>& tile, const Sums<Traits>& sums) {
  constexpr int kWarpFloats = Traits::kSharedBytes / Traits::kWarps / int(sizeof(float));
  constexpr int kTermFloats = Traits::kTokens * 16;
  float* partial = reinterpret_cast<float*>(shared_memory());
  // Every lane of the warp has read its slots before any of them is overwritten.
  __syncwarp();
#pragma unroll
  for (int i = 0; i < Traits::kTerms * Traits::kTokenTiles * 4; ++i) {
    const int value = i % 4, token_tile = i / 4 % Traits::kTokenTiles, term = i / 4 / Traits::kTokenTiles;
    const int token = token_tile * 8 + tile.quad * 2 + value % 2, row = tile.group + value / 2 * 8;
    partial[tile.warp * kWarpFloats + term * kTermFloats + token * 16 + row] = sums[term][token_tile][value];
  }
  __syncthreads();
  for_each_output(p, tile, [&](int token, int row) {
    float sum[Traits::kTerms] = {};
    const float* part = partial + row / 16 * kWarpFloats + token * 16 + row % 16;
    for (int split = 0; split < Traits::kSplits; ++split, part += Traits::kRowWarps * kWarpFloats) {
      for (int term = 0; term < Traits::kTerms; ++term) sum[term] += part[term * kTermFloats];
    }
    const int t = tile.first_token + token, m = tile.first_row + row;
    p.y[t * p.y_stride + m] = finish<Traits>(p, t, m, sum);
  });
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 2)
    decode_product_kernel(const __grid_constant__ DecodeProduct p) {
  // A launch without a predecessor began after all earlier ones had ended: its successor, which begins now,
  // may read at once whatever is not written here.
  if (!p.follows) launch_dependents();
  const ThreadTile<Traits> tile;
  const Chunks<Traits> chunks(p, tile);
  Vector* slots = reinterpret_cast<Vector*>(shared_memory()) +
                  keep_in_register(tile.warp * Traits::kStages * Traits::kStage + tile.lane);
  Sums<Traits> sums = {};
  fill<Traits>(chunks, slots);
  prefetch_tables<Traits>(p, tile);
  accumulate<Traits>(chunks, slots, sums);
  // Also for a warp without a chunk of the last term: this launch must not end before the one it follows.
  if (p.follows) wait_on_dependency();
  reduce<Traits>(p, tile, sums);
}

}  // namespace zweave::cuda
