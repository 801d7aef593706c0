#include "cpu/decoder/decoder.h"

#include <set>

#include "cpu/decoder/decoder_step.h"
#include "cpu/ops/dispatch.h"
#include "cpu/ops/kv_caches.h"
#include "cpu/threads/run_team.h"

namespace zweave {
namespace {

constexpr const char* kOp = "decoder";

// The linears of a layer, in the order of the forward pass.
template <class Layer, class Body>
void each_linear(Layer& layer, Body body) {
  for (auto* linear : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
    body(*linear);
  }
}

void check_layer(const DecoderLayer& layer, const DecoderConfig& config) {
  const at::ScalarType dtype = layer.input_norm.scalar_type();
  const int64_t hidden = layer.input_norm.size(0), size = config.head_size;
  const int64_t q_width = config.heads * size, kv_width = config.kv_heads * size, inner = layer.gate.outputs;
  Argument{kOp, "input_norm", layer.input_norm}.dtype(dtype).shape({hidden}).contiguous();
  Argument{kOp, "mlp_norm", layer.mlp_norm}.dtype(dtype).shape({hidden}).contiguous();
  for (const auto* norm : {&layer.q_norm, &layer.k_norm}) {
    if (*norm) Argument{kOp, "q_norm or k_norm", **norm}.dtype(dtype).shape({size}).contiguous();
  }
  const auto fits = [&](const char* name, const AdaptedLinear& linear, int64_t outputs, int64_t inputs) {
    TORCH_CHECK(linear.outputs == outputs && linear.inputs == inputs, kOp, ": ", name, " is [",
                linear.outputs, ", ", linear.inputs, "], not [", outputs, ", ", inputs, "]");
    check_linear(linear, dtype);
  };
  fits("q", layer.q, q_width, hidden);
  fits("k", layer.k, kv_width, hidden);
  fits("v", layer.v, kv_width, hidden);
  fits("o", layer.o, hidden, q_width);
  fits("gate", layer.gate, inner, hidden);
  fits("up", layer.up, inner, hidden);
  fits("down", layer.down, hidden, inner);
  dispatch(kOp, "input_norm", layer.input_norm, [&]<class T>(const TypedKernels<T>&) {
    const KvLayout<T> layout = kv_layout<T>(kOp, layer.k_cache, layer.v_cache, size);
    TORCH_CHECK(layout.kv_heads == config.kv_heads, kOp, ": the caches have ", layout.kv_heads,
                " heads, not ", config.kv_heads);
  });
  TORCH_CHECK(layer.window >= 0, kOp, ": window must be 0 (none) or positive, not ", layer.window);
}

// The buffers of a step, one after the other in one tensor; every one begins on a cache line.
template <class T>
class Workspace {
 public:
  // A first pass without memory measures, a second hands out.
  Buffer<T> take(int64_t rows, int64_t width) {
    return {reserve(rows * row_stride<T>(width)), row_stride<T>(width), nullptr};
  }
  // The same with room for the rows as integers.
  Buffer<T> take_both(int64_t rows, int64_t width) {
    Buffer<T> buffer = take(rows, width);
    const int64_t bytes = at::get_num_threads() * IntegerRows(nullptr, width).bytes(rows);
    buffer.integers = reinterpret_cast<char*>(reserve(divide_up(bytes, sizeof(T))));
    return buffer;
  }
  void allocate(const at::TensorOptions& options) {
    memory_ = empty_tensor({used_ + 64}, options);
    const auto address = reinterpret_cast<uintptr_t>(memory_.mutable_data_ptr());
    base_ = reinterpret_cast<T*>((address + 63) / 64 * 64);
    used_ = 0;
  }

 private:
  T* reserve(int64_t values) {
    T* at = base_ ? base_ + used_ : nullptr;
    used_ += divide_up(values, 64) * 64;
    return at;
  }

  at::Tensor memory_;
  T* base_ = nullptr;
  int64_t used_ = 0;
};

template <class T>
Activations<T> take_buffers(Workspace<T>& space, const std::vector<LayerView<T>>& layers, int64_t tokens,
                            int64_t hidden, const at::Tensor& y) {
  int64_t rank = 0;
  for (const LayerView<T>& layer : layers) {
    for (const auto* linear : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
      rank = std::max(rank, linear->rank);
    }
  }
  const LayerView<T>& one = layers[0];
  Activations<T> b{};
  b.normed = space.take_both(tokens, hidden);
  b.q = space.take(tokens, one.q.outputs);
  b.k = space.take(tokens, one.k.outputs);
  b.v = space.take(tokens, one.v.outputs);
  b.attended = space.take_both(tokens, one.q.outputs);
  b.gate = space.take(tokens, one.gate.outputs);
  b.up = space.take(tokens, one.gate.outputs);
  b.gated = space.take_both(tokens, one.gate.outputs);
  for (Buffer<T>& between : b.hidden) between = space.take_both(tokens, rank);
  b.y = {mutable_data<T>(y), y.stride(0), nullptr};
  return b;
}

}  // namespace

Decoder::Decoder(const DecoderConfig& config, std::vector<DecoderLayer> layers, at::Tensor cos,
                 at::Tensor sin)
    : config_(config), layers_(std::move(layers)), cos_(std::move(cos)), sin_(std::move(sin)) {
  TORCH_CHECK(!layers_.empty(), kOp, ": it has no layers");
  TORCH_CHECK(config_.kv_heads > 0 && config_.heads % config_.kv_heads == 0, kOp, ": ", config_.heads,
              " query heads cannot share ", config_.kv_heads, " key-value heads evenly");
  TORCH_CHECK(config_.head_size > 0 && config_.head_size % 2 == 0, kOp, ": the head size must be even, not ",
              config_.head_size);
  for (const DecoderLayer& layer : layers_) {
    check_layer(layer, config_);
    TORCH_CHECK(layer.input_norm.sizes() == layers_[0].input_norm.sizes() &&
                    layer.gate.outputs == layers_[0].gate.outputs &&
                    layer.v_cache.sizes() == layers_[0].v_cache.sizes(),
                kOp, ": its layers differ in shape");
  }
  Argument{kOp, "cos", cos_}.dtype(at::kFloat).shape({-1, config_.head_size / 2}).contiguous();
  Argument{kOp, "sin", sin_}.dtype(at::kFloat).shape(cos_.sizes()).contiguous();
}

int64_t Decoder::block_size() const {
  const at::Tensor& values = layers_[0].v_cache;
  return values.size(3) * values.size(5);
}

void Decoder::check_batch(const at::Tensor& x, const at::Tensor& residual, const DecoderBatch& batch) const {
  const DecoderLayer& one = layers_[0];
  const int64_t tokens = x.size(0), hidden = one.input_norm.size(0);
  Argument{kOp, "x", x}.dtype(one.input_norm.scalar_type()).shape({-1, hidden});
  Argument{kOp, "residual", residual}.dtype(at::kFloat).shape({tokens, hidden}).rows_disjoint();
  Argument{kOp, "slot", batch.slot}.indices(tokens, one.q.modes.size(0), "slots");
  Argument{kOp, "position", batch.position}.indices(tokens, cos_.size(0), "positions of cos and sin");
  Argument{kOp, "block_table", batch.block_table}.dtype(at::kInt).shape({-1, -1});
  Argument{kOp, "sequence", batch.sequence}.indices(tokens, batch.block_table.size(0), "rows of block_table");
  const int64_t places = one.v_cache.size(0) * block_size();
  Argument{kOp, "kv_index", batch.kv_index}.indices<int64_t>(tokens, places, "places of the cache");
}

// The tables of modes may change between steps.
void Decoder::check_modes(const DecoderBatch& batch, int64_t first, int64_t last) const {
  const int32_t* slot = data<int32_t>(batch.slot);
  const std::set<int32_t> slots(slot, slot + batch.slot.size(0));
  for (int64_t i = first; i < last; ++i) {
    each_linear(layers_[i], [&](const AdaptedLinear& linear) {
      const uint8_t* modes = data<uint8_t>(linear.modes);
      for (const int32_t s : slots) {
        const auto mode = batch.all_factored && linear.scale ? LinearMode::factored : LinearMode(modes[s]);
        TORCH_CHECK(linear.has(mode, s), kOp, ": slot ", s, " has mode ", int(mode),
                    ", for which a linear of layer ", i, " has no weights");
      }
    });
  }
}

void Decoder::set_merged(int64_t layer, int64_t linear, int32_t slot,
                         const std::optional<at::Tensor>& panels) {
  TORCH_CHECK(0 <= layer && layer < int64_t(layers_.size()), kOp, ": there is no layer ", layer);
  TORCH_CHECK(0 <= linear && linear < 7, kOp, ": there is no linear ", linear);
  int64_t index = 0;
  each_linear(layers_[layer], [&](AdaptedLinear& target) {
    if (index++ != linear) return;
    if (!panels) {
      target.merged->erase(slot);
      return;
    }
    check_packed(kOp, "merged", {*panels}, layers_[layer].input_norm.scalar_type(), target.outputs,
                 target.inputs);
    (*target.merged)[slot] = *panels;
  });
}

at::Tensor Decoder::run(const at::Tensor& x, const at::Tensor& residual, const DecoderBatch& batch,
                        int64_t first, int64_t last) const {
  TORCH_CHECK(0 <= first && first < last && last <= int64_t(layers_.size()), kOp, ": layers ", first, " to ",
              last, " are not a range of its ", layers_.size());
  check_batch(x, residual, batch);
  check_modes(batch, first, last);
  return dispatch(kOp, "x", x, [&]<class T>(const TypedKernels<T>& kernel) {
    const int64_t tokens = x.size(0), hidden = x.size(1);
    at::Tensor y = empty_tensor({tokens, hidden}, x.options());
    if (tokens == 0) return y;
    std::vector<LayerView<T>> layers;
    for (int64_t i = first; i < last; ++i) layers.emplace_back(layers_[i], batch.all_factored);
    Workspace<T> space;
    take_buffers(space, layers, tokens, hidden, y);
    space.allocate(x.options());

    DecoderStep<T> step(config_, kernel, tokens, hidden);
    step.buffers = take_buffers(space, layers, tokens, hidden, y);
    step.cos = data<float>(cos_);
    step.sin = data<float>(sin_);
    step.slot = data<int32_t>(batch.slot);
    step.position = data<int32_t>(batch.position);
    step.kv_index = data<int64_t>(batch.kv_index);
    step.x = data<T>(x);
    step.x_stride = x.stride(0);
    step.residual = mutable_data<float>(residual);
    step.residual_stride = residual.stride(0);
    Attention<T>& attention = step.attention;
    attention.block_table = data<int32_t>(batch.block_table);
    attention.block_table_stride = batch.block_table.stride(0);
    attention.sequence = data<int32_t>(batch.sequence);
    attention.position = step.position;
    attention.heads = config_.heads;
    attention.kv_heads = config_.kv_heads;
    attention.head_size = config_.head_size;
    attention.block_size = block_size();
    attention.scale = float(config_.scale);
    for (int64_t i = first; i < last; ++i) {
      attention.window = layers_[i].window;
      if (i == first || attention.window != layers_[i - 1].window) {
        check_blocks(kOp, attention, tokens, layers_[0].k_cache.size(0), batch.block_table.size(1));
      }
    }
    const AttentionWork work(attention, tokens);
    const int64_t group = config_.heads / config_.kv_heads;
    step.work = &work;
    step.scratch_bytes = kernel.attention_scratch(work.longest(), group, config_.head_size);
    const at::Tensor scratch =
        empty_tensor({at::get_num_threads(), step.scratch_bytes}, x.options().dtype(at::kByte));
    step.scratch = mutable_data<char>(scratch);
    run_team([&](const Team& team) { step.run(team, layers); });
    return y;
  });
}

}  // namespace zweave
