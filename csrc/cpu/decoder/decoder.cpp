#include "cpu/decoder/decoder.h"

#include <set>

#include "cpu/decoder/decoder_step.h"
#include "cpu/decoder/workspace.h"
#include "cpu/ops/dispatch.h"
#include "cpu/ops/kv_caches.h"
#include "cpu/threads/run_team.h"

namespace zweave {
namespace {

constexpr const char* kOp = "decoder";

void check_layer(const DecoderLayer& layer, const DecoderConfig& config) {
  const at::ScalarType dtype = layer.input_norm.scalar_type();
  const int64_t hidden = layer.input_norm.size(0), size = config.head_size;
  const int64_t q_width = config.heads * size, kv_width = config.kv_heads * size,
                inner = layer.linears[kGate].outputs;
  Argument{kOp, "input_norm", layer.input_norm}.dtype(dtype).shape({hidden}).contiguous();
  Argument{kOp, "mlp_norm", layer.mlp_norm}.dtype(dtype).shape({hidden}).contiguous();
  for (const auto* norm : {&layer.q_norm, &layer.k_norm}) {
    if (*norm) Argument{kOp, "q_norm or k_norm", **norm}.dtype(dtype).shape({size}).contiguous();
  }
  const struct {
    int64_t outputs, inputs;
  } sizes[kNumLinears] = {{q_width, hidden}, {kv_width, hidden}, {kv_width, hidden}, {hidden, q_width},
                          {inner, hidden},   {inner, hidden},    {hidden, inner}};
  for (int i = 0; i < kNumLinears; ++i) {
    const AdaptedLinear& linear = layer.linears[i];
    TORCH_CHECK(linear.outputs == sizes[i].outputs && linear.inputs == sizes[i].inputs, kOp, ": ",
                kLinearNames[i], " is [", linear.outputs, ", ", linear.inputs, "], not [", sizes[i].outputs,
                ", ", sizes[i].inputs, "]");
    linear.check(dtype);
  }
  dispatch(kOp, "input_norm", layer.input_norm, [&]<class T>(const TypedKernels<T>&) {
    const KvLayout<T> layout = kv_layout<T>(kOp, layer.k_cache, layer.v_cache, size);
    TORCH_CHECK(layout.kv_heads == config.kv_heads, kOp, ": the caches have ", layout.kv_heads,
                " heads, not ", config.kv_heads);
  });
  TORCH_CHECK(layer.window >= 0, kOp, ": window must be 0 (none) or positive, not ", layer.window);
}

template <class T>
LayerView<T> view(const DecoderLayer& layer, bool all_factored) {
  const auto pointer = [](const std::optional<at::Tensor>& norm) { return norm ? data<T>(*norm) : nullptr; };
  LayerView<T> result{};
  result.input_norm = data<T>(layer.input_norm);
  result.mlp_norm = data<T>(layer.mlp_norm);
  result.q_norm = pointer(layer.q_norm);
  result.k_norm = pointer(layer.k_norm);
  for (int i = 0; i < kNumLinears; ++i) result.linears[i] = layer.linears[i].template view<T>(all_factored);
  result.k_cache = mutable_data<T>(layer.k_cache);
  result.v_cache = mutable_data<T>(layer.v_cache);
  result.window = layer.window;
  return result;
}

template <class T>
Activations<T> take_buffers(Workspace<T>& space, const std::vector<LayerView<T>>& layers, int64_t tokens,
                            int64_t hidden, int64_t paged, const at::Tensor& y) {
  int64_t rank = 0, rest = 0;
  for (const LayerView<T>& layer : layers) {
    for (const LinearView<T>& linear : layer.linears) {
      rank = std::max(rank, linear.rank);
      rest = std::max(rest, linear.rest_rank);
    }
  }
  const LinearView<T>* one = layers[0].linears;
  Activations<T> b{};
  b.normed = space.take_both(tokens, hidden);
  b.q = space.take(tokens, one[kQ].outputs);
  b.k = space.take(tokens, one[kK].outputs);
  b.v = space.take(tokens, one[kV].outputs);
  b.attended = space.take_both(tokens, one[kQ].outputs);
  b.gate = space.take(tokens, one[kGate].outputs);
  b.up = space.take(tokens, one[kGate].outputs);
  b.gated = space.take_both(tokens, one[kGate].outputs);
  for (Between<T>& between : b.between) {
    between = {space.take_both(tokens, rank), space.take_both(tokens, rest), space.take(tokens, paged)};
  }
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
                    layer.linears[kGate].outputs == layers_[0].linears[kGate].outputs &&
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

void Decoder::check_metadata(const at::Tensor& x, const at::Tensor& residual,
                             const DecoderMetadata& meta) const {
  const DecoderLayer& one = layers_[0];
  const int64_t tokens = x.size(0), hidden = one.input_norm.size(0);
  Argument{kOp, "x", x}.dtype(one.input_norm.scalar_type()).shape({-1, hidden});
  Argument{kOp, "residual", residual}.dtype(at::kFloat).shape({tokens, hidden}).rows_disjoint();
  Argument{kOp, "slot", meta.slot}.indices(tokens, one.linears[kQ].modes.size(0), "slots");
  Argument{kOp, "position", meta.position}.indices(tokens, cos_.size(0), "positions of cos and sin");
  Argument{kOp, "block_table", meta.block_table}.dtype(at::kInt).shape({-1, -1});
  Argument{kOp, "sequence", meta.seq_index}.indices(tokens, meta.block_table.size(0), "rows of block_table");
  const int64_t places = one.v_cache.size(0) * block_size();
  Argument{kOp, "kv_index", meta.kv_index}.indices<int64_t>(tokens, places, "places of the cache");
}

// The tables of modes may change between steps.
void Decoder::check_modes(const DecoderMetadata& meta, int64_t first, int64_t last) const {
  const int32_t* slot = data<int32_t>(meta.slot);
  const std::set<int32_t> slots(slot, slot + meta.slot.size(0));
  for (int64_t i = first; i < last; ++i) {
    for (const AdaptedLinear& linear : layers_[i].linears) {
      for (const int32_t s : slots) {
        const LinearMode mode = linear.mode_of(s, meta.all_factored);
        TORCH_CHECK(linear.has(mode, s), kOp, ": slot ", s, " has mode ", int(mode),
                    ", for which a linear of layer ", i, " has no weights");
      }
    }
  }
}

// The components of all pages that a step's slots have, the most of any linear.
int64_t Decoder::paged_components(const DecoderMetadata& meta, int64_t first, int64_t last) const {
  int64_t most = 0;
  const PageTensors* seen = nullptr;
  for (int64_t i = first; i < last; ++i) {
    for (const AdaptedLinear& linear : layers_[i].linears) {
      // The linears of a model share the pages of their slots.
      if (!linear.pages || (seen && seen->pages_of.is_same(linear.pages->pages_of))) continue;
      seen = &*linear.pages;
      most = std::max(most, seen->components_of(meta.slot));
    }
  }
  return most;
}

void Decoder::set_merged(int64_t layer, int64_t linear, int32_t slot,
                         const std::optional<at::Tensor>& panels) {
  TORCH_CHECK(0 <= layer && layer < int64_t(layers_.size()), kOp, ": there is no layer ", layer);
  TORCH_CHECK(0 <= linear && linear < kNumLinears, kOp, ": there is no linear ", linear);
  AdaptedLinear& target = layers_[layer].linears[linear];
  if (panels) {
    const at::ScalarType dtype = layers_[layer].input_norm.scalar_type();
    check_packed(kOp, "merged", {*panels}, dtype, target.outputs, target.inputs);
  }
  target.set_merged(slot, panels);
}

at::Tensor Decoder::run(const at::Tensor& x, const at::Tensor& residual, const DecoderMetadata& meta,
                        int64_t first, int64_t last) const {
  TORCH_CHECK(0 <= first && first < last && last <= int64_t(layers_.size()), kOp, ": layers ", first, " to ",
              last, " are not a range of its ", layers_.size());
  check_metadata(x, residual, meta);
  check_modes(meta, first, last);
  return dispatch(kOp, "x", x, [&]<class T>(const TypedKernels<T>& kernel) {
    const int64_t tokens = x.size(0), hidden = x.size(1);
    at::Tensor y = empty_tensor({tokens, hidden}, x.options());
    if (tokens == 0) return y;
    std::vector<LayerView<T>> layers;
    for (int64_t i = first; i < last; ++i) layers.push_back(view<T>(layers_[i], meta.all_factored));
    const int64_t paged = paged_components(meta, first, last);
    Workspace<T> space;
    take_buffers(space, layers, tokens, hidden, paged, y);
    space.allocate(x.options());

    DecoderStep<T> step(config_, kernel, tokens, hidden);
    step.buffers = take_buffers(space, layers, tokens, hidden, paged, y);
    step.cos = data<float>(cos_);
    step.sin = data<float>(sin_);
    step.slot = data<int32_t>(meta.slot);
    step.position = data<int32_t>(meta.position);
    step.kv_index = data<int64_t>(meta.kv_index);
    step.x = data<T>(x);
    step.x_stride = x.stride(0);
    step.residual = mutable_data<float>(residual);
    step.residual_stride = residual.stride(0);
    Attention<T>& attention = step.attention;
    attention.block_table = data<int32_t>(meta.block_table);
    attention.block_table_stride = meta.block_table.stride(0);
    attention.sequence = data<int32_t>(meta.seq_index);
    attention.position = step.position;
    attention.heads = config_.heads;
    attention.kv_heads = config_.kv_heads;
    attention.head_size = config_.head_size;
    attention.block_size = block_size();
    attention.scale = float(config_.scale);
    for (int64_t i = first; i < last; ++i) {
      attention.window = layers_[i].window;
      if (i == first || attention.window != layers_[i - 1].window) {
        check_blocks(kOp, attention, tokens, layers_[0].k_cache.size(0), meta.block_table.size(1));
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
