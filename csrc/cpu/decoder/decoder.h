// The layers of a decoder of the Llama family in one call: a team of threads goes through all of them, with a
// barrier between two products instead of a call.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "cpu/decoder/adapted_linear.h"
#include "cpu/decoder/decoder_config.h"

namespace zweave {

struct DecoderLayer {
  at::Tensor input_norm, mlp_norm;           // [hidden]
  std::optional<at::Tensor> q_norm, k_norm;  // [head_size]
  AdaptedLinear linears[kNumLinears];
  at::Tensor k_cache, v_cache;  // of blocks as KvLayout has them
  int64_t window;               // of attention, 0: none
};

// The tokens of a step; shapes and dtypes as the ops rope, write_kv and paged_attention take them.
struct DecoderMetadata {
  at::Tensor slot, seq_index, position, kv_index, block_table;
  // Every token is computed in factored mode where a linear has factors, whatever its slot says.
  bool all_factored;
};

class Decoder {
 public:
  // cos, sin: [positions, head_size / 2] float32. Throws where the parts of a layer do not fit.
  Decoder(const DecoderConfig& config, std::vector<DecoderLayer> layers, at::Tensor cos, at::Tensor sin);

  // Layers [first, last). x [T, hidden] is added to `residual` [T, hidden] float32, in place, before anything
  // else, as each layer adds what it computes; the last addition is the caller's: returns x [T, hidden].
  at::Tensor run(const at::Tensor& x, const at::Tensor& residual, const DecoderMetadata& meta, int64_t first,
                 int64_t last) const;

  // Gives a slot a weight of its own in a linear (a LayerLinear), panels of W', or takes it away. Not while
  // `run` runs.
  void set_merged(int64_t layer, int64_t linear, int32_t slot, const std::optional<at::Tensor>& panels);

 private:
  int64_t block_size() const;
  void check_metadata(const at::Tensor& x, const at::Tensor& residual, const DecoderMetadata& meta) const;
  void check_modes(const DecoderMetadata& meta, int64_t first, int64_t last) const;
  int64_t paged_components(const DecoderMetadata& meta, int64_t first, int64_t last) const;

  DecoderConfig config_;
  std::vector<DecoderLayer> layers_;
  at::Tensor cos_, sin_;
};

}  // namespace zweave
