// The instances of the decode kernel, and the choice of one by its config.
#pragma once

#include "cuda/decode_product.h"

namespace zweave::cuda {

template <int row_warps, int token_tiles, int terms, bool aligned>
struct DecodeTraits {
  static constexpr int kWarps = 8;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kRowWarps = row_warps;
  static constexpr int kSplits = kWarps / row_warps;
  static constexpr int kRows = row_warps * 16;
  static constexpr int kTokenTiles = token_tiles;
  static constexpr int kTokens = token_tiles * 8;
  static constexpr int kTerms = terms;
  static constexpr bool kAligned = aligned;
  static constexpr int kChunk = 32;
  // A lane's vectors of a chunk: two rows of weights, one token of each tile.
  static constexpr int kVectors = 2 + token_tiles;
  static constexpr int kStage = kVectors * 32;
  // 96 KiB a block: two blocks share an SM of sm_90, and consumer chips hold one.
  static constexpr int kStages = 24 / kVectors;
  static constexpr int kAhead = kStages - 1;
  static constexpr int kSharedBytes = kWarps * kStages * kStage * 16;
  static_assert(kTerms * kTokens * 16 * int(sizeof(float)) <= kSharedBytes / kWarps,
                "partial sums reuse the slots");
};

// Blocks of a launch along x (tokens) and y (outputs).
template <class Traits>
int token_blocks(const DecodeProduct& p) {
  return (p.tokens + Traits::kTokens - 1) / Traits::kTokens;
}

template <class Traits>
int row_blocks(const DecodeProduct& p) {
  return (p.outputs + Traits::kRows - 1) / Traits::kRows;
}

// Calls run.template operator()<Traits>() with the instance that a config names.
template <int terms, int row_warps, bool aligned, class Run>
auto with_token_tiles(const DecodeConfig& config, Run run) {
  if (config.token_tiles == 1) return run.template operator()<DecodeTraits<row_warps, 1, terms, aligned>>();
  if (config.token_tiles == 2) return run.template operator()<DecodeTraits<row_warps, 2, terms, aligned>>();
  return run.template operator()<DecodeTraits<row_warps, 4, terms, aligned>>();
}

template <int terms, class Run>
auto with_rows(const DecodeConfig& config, Run run) {
  if (!config.aligned) return with_token_tiles<terms, 1, false>(config, run);
  if (config.row_warps == 1) return with_token_tiles<terms, 1, true>(config, run);
  if (config.row_warps == 2) return with_token_tiles<terms, 2, true>(config, run);
  return with_token_tiles<terms, 4, true>(config, run);
}

template <class Run>
auto with_decode_traits(const DecodeConfig& config, Run run) {
  return config.terms == 1 ? with_rows<1>(config, run) : with_rows<2>(config, run);
}

}  // namespace zweave::cuda
