// Runs the decode kernels of csrc/cuda in the emulator: `decode INPUT OUTPUT`.
//
// INPUT holds twelve int64 (tokens, outputs, inputs, rank, slots, flags for w, bias and early arrival, seed,
// the values by which rows of x and of the weights lie further apart than they are long, and how many linears
// follow each other), then the operands as raw bytes: x, w, vt, u, scale, slot, bias. OUTPUT gets y. Without
// w the linear is the factored one; without rank, slots and u the plain one. Of several linears each takes
// what the one before has made, and all share the memory of what is between their products; without w they
// work in place, else in two buffers in turn.
//
// Built with -DINSTANCE=row_warps,token_tiles,terms,aligned it holds that instance of the kernel alone and
// fails for a product of another, but takes a fraction of the time to compile.
#include <fstream>
#include <memory>

#include "cuda/decode_product.cuh"

namespace {

using zweave::cuda::Bf16;
using zweave::cuda::DecodeProduct;

// Memory of exactly the size asked for, so that AddressSanitizer sees the first value beyond it.
template <class T>
struct Buffer {
  std::unique_ptr<T[]> values;
  size_t size;
  explicit Buffer(size_t count) : values(new T[count]), size(count) {
    std::memset(values.get(), 0xff, count * sizeof(T));
  }
  Buffer(size_t count, std::istream& in) : Buffer(count) {
    in.read(reinterpret_cast<char*>(values.get()), count * sizeof(T));
  }
  T* get() const { return values.get(); }
};

// Values of a matrix whose rows lie `stride` apart; the last row ends where it ends.
size_t extent(int64_t rows, int64_t columns, int64_t stride) {
  return rows == 0 || columns == 0 ? 0 : (rows - 1) * stride + columns;
}

template <class Run>
emulator::Launch with_instance(const zweave::cuda::DecodeConfig& config, Run run) {
#ifdef INSTANCE
  using Traits = zweave::cuda::DecodeTraits<INSTANCE>;
  if (config.row_warps != Traits::kRowWarps || config.token_tiles != Traits::kTokenTiles ||
      config.terms != Traits::kTerms || config.aligned != Traits::kAligned) {
    emulator::fail("the product wants another instance");
  }
  return run.template operator()<Traits>();
#else
  return with_decode_traits(config, run);
#endif
}

emulator::Launch launch_of(const DecodeProduct& p) {
  return with_instance(decode_config(p), [&]<class Traits>() {
    const emulator::Dim blocks = {unsigned(zweave::cuda::token_blocks<Traits>(p)),
                                  unsigned(zweave::cuda::row_blocks<Traits>(p))};
    return emulator::Launch{blocks, Traits::kThreads, size_t(Traits::kSharedBytes),
                            [p] { zweave::cuda::decode_product_kernel<Traits>(p); }, p.follows};
  });
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) emulator::fail("usage: decode INPUT OUTPUT");
  std::ifstream in(arguments[1], std::ios::binary);
  int64_t head[12];
  in.read(reinterpret_cast<char*>(head), sizeof head);
  const auto [tokens, outputs, inputs, rank, slots, has_w, has_bias, arrives_early, seed, x_gap, gap, depth] =
      head;
  emulator::machine.arrival = arrives_early ? emulator::Arrival::early : emulator::Arrival::late;
  emulator::machine.order.seed(unsigned(seed));

  const Buffer<Bf16> x(extent(tokens, inputs, inputs + x_gap), in);
  const Buffer<Bf16> w(has_w ? extent(outputs, inputs, inputs + gap) : 0, in);
  const Buffer<Bf16> vt(extent(rank, inputs, inputs + gap), in), u(extent(outputs, rank, rank + gap), in);
  const Buffer<float> scale(slots * rank, in);
  const Buffer<int32_t> slot(slots ? tokens : 0, in);
  const Buffer<Bf16> bias(has_bias ? outputs : 0, in), hidden(tokens * rank), y(tokens * outputs);
  if (!in) emulator::fail("the input is too short");

  zweave::cuda::SvfOperands a = {};
  a.x = x.get(), a.x_stride = inputs + x_gap;
  if (has_w) a.w = w.get(), a.w_stride = inputs + gap;
  a.vt = vt.get(), a.vt_stride = inputs + gap;
  if (slots) a.u = u.get(), a.u_stride = rank + gap;
  a.scale = scale.get(), a.scale_stride = rank;
  if (slots) a.slot = slot.get();
  if (has_bias) a.bias = bias.get();
  a.hidden = hidden.get(), a.y = y.get();
  a.tokens = tokens, a.outputs = outputs, a.inputs = inputs, a.rank = rank, a.slots = slots;
  std::vector<emulator::Launch> launches;
  for (int64_t i = 0; i < depth; ++i) {
    if (i > 0) a.x = a.y, a.y = has_w && i % 2 ? x.get() : y.get();
    if (rank) launches.push_back(launch_of(hidden_product(a)));
    launches.push_back(launch_of(output_product(a)));
  }
  emulator::run(launches);
  std::ofstream out(arguments[2], std::ios::binary);
  out.write(reinterpret_cast<const char*>(a.y), y.size * sizeof(Bf16));
  return out ? 0 : 1;
}
