// What the layers of a decoder have in common.
#pragma once

#include <cstdint>

namespace zweave {

struct DecoderConfig {
  int64_t heads, kv_heads, head_size;
  double scale;  // of attention scores
  double eps;    // of the norms
};

// The linears of a layer in the order of the forward pass; kernels/decoder.py counts them alike.
enum LayerLinear : int { kQ, kK, kV, kO, kGate, kUp, kDown, kNumLinears };
constexpr const char* kLinearNames[kNumLinears] = {"q", "k", "v", "o", "gate", "up", "down"};

}  // namespace zweave
