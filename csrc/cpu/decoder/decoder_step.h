// One step of a decoder in one dtype, on raw pointers: the phases of its layers.
#pragma once

#include <vector>

#include "cpu/attention/attention_work.h"
#include "cpu/attention/kv_layout.h"
#include "cpu/decoder/decoder_config.h"
#include "cpu/decoder/linear_view.h"

namespace zweave {

// The activations of a step, reused by every layer.
template <class T>
struct Activations {
  Buffer<T> normed, q, k, v, attended, gate, up, gated, y;
  Between<T> between[3];
};

// A layer as pointers.
template <class T>
struct LayerView {
  const T *input_norm, *mlp_norm;  // [hidden]
  const T *q_norm, *k_norm;        // [head_size], or null
  LinearView<T> linears[kNumLinears];
  T *k_cache, *v_cache;  // of blocks as KvLayout has them
  int64_t window;        // of attention, 0: none
};

// The products of a layer; the second phase of a pair reads what the first one writes.
template <class T>
struct LayerPhases {
  Phase<T> qkv[2], o[2], gate_up[2], down[2];
};

template <class T>
class DecoderStep {
 public:
  DecoderStep(const DecoderConfig& config, const TypedKernels<T>& kernel, int64_t tokens, int64_t hidden)
      : config_(config), kernel_(kernel), tokens_(tokens), hidden_(hidden) {}

  // Set by the caller.
  const float *cos, *sin;
  const int32_t *slot, *position;
  const int64_t* kv_index;
  Attention<T> attention;  // all but the caches, the window and q
  const AttentionWork* work;
  Activations<T> buffers;
  const T* x;
  int64_t x_stride;
  float* residual;
  int64_t residual_stride;
  char* scratch;  // of attention, `scratch_bytes` a thread
  int64_t scratch_bytes;

  void run(const Team& team, const std::vector<LayerView<T>>& layers) const {
    LayerPhases<T> phases[2];
    prepare(layers[0], phases[0]);
    const T* input = x;
    int64_t stride = x_stride;
    for (size_t i = 0; i < layers.size(); ++i) {
      LayerPhases<T>& now = phases[i % 2];
      LayerPhases<T>& after = phases[(i + 1) % 2];
      const bool is_last = i + 1 == layers.size();
      if (!is_last) prepare(layers[i + 1], after);
      prefetch_kv(team, layers[i]);
      add_norm(team, input, stride, layers[i].input_norm);
      multiply(team, now.qkv, now.o);
      rotate_and_store(team, layers[i]);
      attend(team, layers[i]);
      multiply(team, now.o, now.gate_up);
      add_norm(team, buffers.y.data, buffers.y.stride, layers[i].mlp_norm);
      multiply(team, now.gate_up, now.down);
      gate(team, layers[i].linears[kGate].outputs);
      multiply(team, now.down, is_last ? now.qkv : after.qkv);
      input = buffers.y.data;
      stride = buffers.y.stride;
    }
  }

 private:
  void prepare(const LayerView<T>& layer, LayerPhases<T>& phases) const {
    for (Phase<T>* pair : {phases.qkv, phases.o, phases.gate_up, phases.down}) {
      pair[0].clear(tokens_);
      pair[1].clear(tokens_);
    }
    const Activations<T>& b = buffers;
    const auto add = [&](LayerLinear linear, Buffer<T> input, Between<T> between, Buffer<T> output,
                         Phase<T>* pair) {
      layer.linears[linear].add_jobs(input, slot, tokens_, between, output, pair[0], pair[1]);
    };
    add(kQ, b.normed, b.between[0], b.q, phases.qkv);
    add(kK, b.normed, b.between[1], b.k, phases.qkv);
    add(kV, b.normed, b.between[2], b.v, phases.qkv);
    add(kO, b.attended, b.between[0], b.y, phases.o);
    add(kGate, b.normed, b.between[0], b.gate, phases.gate_up);
    add(kUp, b.normed, b.between[1], b.up, phases.gate_up);
    add(kDown, b.gated, b.between[0], b.y, phases.down);
  }

  // Both phases of a group of linears; `following` is the next group, whose weights are fetched towards the
  // end.
  void multiply(const Team& team, const Phase<T>* pair, const Phase<T>* following) const {
    const void* beyond = (following[0].empty() ? following[1] : following[0]).first_weight(team);
    if (!pair[0].empty()) {
      pair[0].run(kernel_, team, pair[1].empty() ? beyond : pair[1].first_weight(team));
      team.wait();
    }
    if (!pair[1].empty()) {
      pair[1].run(kernel_, team, beyond);
      team.wait();
    }
  }

  void add_norm(const Team& team, const T* input, int64_t stride, const T* weight) const {
    Norm<T> call{};
    call.x = input;
    call.x_stride = stride;
    call.residual = residual;
    call.residual_stride = residual_stride;
    call.weight = weight;
    call.y = buffers.normed.data;
    call.y_stride = buffers.normed.stride;
    call.width = hidden_;
    call.eps = float(config_.eps);
    team.share(tokens_, [&](int64_t begin, int64_t end) { kernel_.norm(call, begin, end); });
    team.wait();
  }

  // Norms the heads of tokens [begin, end), in place.
  void head_norm(Buffer<T> x, int64_t heads, const T* weight, int64_t begin, int64_t end) const {
    if (!weight) return;
    for (int64_t t = begin; t < end; ++t) {
      Norm<T> call{};
      call.x = call.y = x.data + t * x.stride;
      call.x_stride = call.y_stride = config_.head_size;
      call.weight = weight;
      call.width = config_.head_size;
      call.eps = float(config_.eps);
      kernel_.norm(call, 0, heads);
    }
  }

  // Starts to load what storing the tokens will write: memory is idle during a norm, and the first store to a
  // line would wait for it.
  void prefetch_kv(const Team& team, const LayerView<T>& layer) const {
    const KvLayout<T> layout = kv_layout();
    team.share(tokens_, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) layout.fetch(layer.k_cache, layer.v_cache, kv_index[t]);
    });
  }

  void rotate_and_store(const Team& team, const LayerView<T>& layer) const {
    const int64_t heads = config_.heads, kv_heads = config_.kv_heads, size = config_.head_size;
    const KvLayout<T> layout = kv_layout();
    team.share(tokens_, [&](int64_t begin, int64_t end) {
      const Buffer<T>&q = buffers.q, &k = buffers.k, &v = buffers.v;
      head_norm(q, heads, layer.q_norm, begin, end);
      head_norm(k, kv_heads, layer.k_norm, begin, end);
      kernel_.rope({q.data, q.stride, heads, size, cos, sin, position}, begin, end);
      kernel_.rope({k.data, k.stride, kv_heads, size, cos, sin, position}, begin, end);
      for (int64_t t = begin; t < end; ++t) {
        layout.store_keys(k.data + t * k.stride, layer.k_cache, kv_index[t]);
        layout.store_values(v.data + t * v.stride, layer.v_cache, kv_index[t]);
      }
    });
    team.wait();
  }

  void attend(const Team& team, const LayerView<T>& layer) const {
    Attention<T> call = attention;
    call.q = buffers.q.data;
    call.q_stride = buffers.q.stride;
    call.k_cache = layer.k_cache;
    call.v_cache = layer.v_cache;
    call.window = layer.window;
    call.y = buffers.attended.data;
    call.y_stride = buffers.attended.stride;
    work->share(team.rank, team.size, [&](const AttentionItem* items, int64_t count) {
      kernel_.attention(call, items, count, scratch + team.rank * scratch_bytes);
    });
    team.wait();
  }

  void gate(const Team& team, int64_t width) const {
    const SiluMul<T> call{buffers.gate.data,
                          buffers.gate.stride,
                          buffers.up.data,
                          buffers.up.stride,
                          buffers.gated.data,
                          buffers.gated.stride,
                          width};
    team.share(tokens_, [&](int64_t begin, int64_t end) { kernel_.silu_mul(call, begin, end); });
    team.wait();
  }

  KvLayout<T> kv_layout() const { return {config_.kv_heads, attention.block_size, config_.head_size}; }

  const DecoderConfig& config_;
  const TypedKernels<T>& kernel_;
  const int64_t tokens_, hidden_;
};

}  // namespace zweave
