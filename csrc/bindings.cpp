// The schema of every op, once, and which function of csrc/cpu computes it; csrc/cuda adds its own. Beside
// the ops there is what keeps state: the decoder.
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include "cpu/decoder/decoder.h"
#include "cpu/isa/isa.h"
#include "cpu/ops/ops.h"
#include "cpu/threads/huge_pages.h"

TORCH_LIBRARY(zweave, m) {
  m.def("pack(Tensor weight) -> Tensor");
  m.def("unpack(Tensor packed, int out_features, int in_features) -> Tensor");
  m.def(
      "linear(Tensor x, Tensor weight, Tensor? bias, int out_features, ScalarType? out_dtype=None) -> "
      "Tensor");
  m.def(
      "svf_linear(Tensor x, Tensor vt, Tensor u, Tensor scale, Tensor slot, Tensor? bias, int out_features) "
      "-> Tensor");
  m.def(
      "svf_delta_linear(Tensor x, Tensor w, Tensor vt, Tensor u, Tensor delta, Tensor slot, Tensor? bias, "
      "int out_features, Tensor? vt_scale=None, Tensor? u_scale=None, int vt_group=0, int u_group=0) -> "
      "Tensor");
  m.def("greedy(Tensor logits) -> (Tensor, Tensor)");
  m.def("mix(Tensor table, Tensor alpha) -> Tensor");
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  m.def("add_rms_norm(Tensor x, Tensor(a!) residual, Tensor weight, float eps) -> Tensor");
  m.def("rope(Tensor(a!) q, Tensor(b!) k, Tensor cos, Tensor sin, Tensor position) -> ()");
  m.def("silu_mul(Tensor gate, Tensor up) -> Tensor");
  m.def("write_kv(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor index) -> ()");
  m.def(
      "paged_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor sequence, "
      "Tensor position, float scale, int window) -> Tensor");
#ifdef ZWEAVE_CUDA
  m.def("linear_decode(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  m.def(
      "svf_linear_decode(Tensor x, Tensor vt, Tensor u, Tensor scale, Tensor slot, Tensor? bias) -> Tensor");
  m.def(
      "svf_delta_linear_decode(Tensor x, Tensor w, Tensor vt, Tensor u, Tensor delta, Tensor slot, "
      "Tensor? bias) -> Tensor");
#endif
}

TORCH_LIBRARY_IMPL(zweave, CPU, m) {
  m.impl("pack", zweave::ops::pack);
  m.impl("unpack", zweave::ops::unpack);
  m.impl("linear", zweave::ops::linear);
  m.impl("svf_linear", zweave::ops::svf_linear);
  m.impl("svf_delta_linear", zweave::ops::svf_delta_linear);
  m.impl("greedy", zweave::ops::greedy);
  m.impl("mix", zweave::ops::mix);
  m.impl("rms_norm", zweave::ops::rms_norm);
  m.impl("add_rms_norm", zweave::ops::add_rms_norm);
  m.impl("rope", zweave::ops::rope);
  m.impl("silu_mul", zweave::ops::silu_mul);
  m.impl("write_kv", zweave::ops::write_kv);
  m.impl("paged_attention", zweave::ops::paged_attention);
}

namespace py = pybind11;
using zweave::AdaptedLinear;
using zweave::Decoder;
using zweave::DecoderConfig;
using zweave::DecoderLayer;
using zweave::PackedMatrix;
using zweave::PageTensors;
using OptionalTensor = std::optional<at::Tensor>;

std::optional<PackedMatrix> packed(const OptionalTensor& panels, const OptionalTensor& scale, int64_t group) {
  if (!panels) return {};
  return PackedMatrix{*panels, scale, group};
}

// `import zweave.kernels._C` loads the library; the ops live in torch.ops.zweave.
PYBIND11_MODULE(_C, m) {
  m.def("cpu_isa", [] { return zweave::kernels().name; });

  m.def(
      "empty_in_huge_pages",
      [](const std::vector<int64_t>& shape, at::ScalarType dtype) {
        return zweave::empty_in_huge_pages(shape, dtype);
      },
      py::arg("shape"), py::arg("dtype"));

  m.def(
      "zeros_in_huge_pages",
      [](const std::vector<int64_t>& shape, at::ScalarType dtype) {
        return zweave::zeros_in_huge_pages(shape, dtype);
      },
      py::arg("shape"), py::arg("dtype"));

  py::class_<PageTensors>(m, "ComponentPages")
      .def(py::init([](at::Tensor vt, at::Tensor u, at::Tensor scale, at::Tensor pages_of,
                       at::Tensor adapted) { return PageTensors{vt, u, scale, pages_of, adapted}; }),
           py::kw_only(), py::arg("vt"), py::arg("u"), py::arg("scale"), py::arg("pages_of"),
           py::arg("adapted"));

  py::class_<AdaptedLinear>(m, "AdaptedLinear")
      .def(py::init([](int64_t in_features, int64_t out_features, OptionalTensor dense, OptionalTensor vt,
                       OptionalTensor u, OptionalTensor scale, OptionalTensor delta, OptionalTensor bias,
                       at::Tensor modes, OptionalTensor vt_scale, OptionalTensor u_scale, int64_t vt_group,
                       int64_t u_group, OptionalTensor supports, std::optional<PageTensors> pages,
                       int64_t rest_rank, OptionalTensor rest_vt, OptionalTensor rest_vt_scale,
                       int64_t rest_vt_group, OptionalTensor rest_u, OptionalTensor rest_u_scale,
                       int64_t rest_u_group) {
             return AdaptedLinear{in_features,
                                  out_features,
                                  dense,
                                  packed(vt, vt_scale, vt_group),
                                  packed(u, u_scale, u_group),
                                  scale,
                                  delta,
                                  rest_rank,
                                  packed(rest_vt, rest_vt_scale, rest_vt_group),
                                  packed(rest_u, rest_u_scale, rest_u_group),
                                  bias,
                                  modes,
                                  supports,
                                  std::move(pages)};
           }),
           py::kw_only(), py::arg("in_features"), py::arg("out_features"), py::arg("dense"), py::arg("vt"),
           py::arg("u"), py::arg("scale"), py::arg("delta"), py::arg("bias"), py::arg("modes"),
           py::arg("vt_scale") = py::none(), py::arg("u_scale") = py::none(), py::arg("vt_group") = 0,
           py::arg("u_group") = 0, py::arg("supports") = py::none(), py::arg("pages") = py::none(),
           py::arg("rest_rank") = 0, py::arg("rest_vt") = py::none(), py::arg("rest_vt_scale") = py::none(),
           py::arg("rest_vt_group") = 0, py::arg("rest_u") = py::none(), py::arg("rest_u_scale") = py::none(),
           py::arg("rest_u_group") = 0)
      .def(
          "run",
          [](const AdaptedLinear& linear, const at::Tensor& x, const at::Tensor& slot, bool all_factored) {
            const py::gil_scoped_release release;
            return linear.run(x, slot, all_factored);
          },
          py::arg("x"), py::arg("slot"), py::arg("all_factored"))
      .def("set_merged", &AdaptedLinear::set_merged, py::arg("slot"), py::arg("panels"));

  py::class_<DecoderLayer>(m, "DecoderLayer")
      .def(py::init([](at::Tensor input_norm, at::Tensor mlp_norm, OptionalTensor q_norm,
                       OptionalTensor k_norm, const AdaptedLinear& q, const AdaptedLinear& k,
                       const AdaptedLinear& v, const AdaptedLinear& o, const AdaptedLinear& gate,
                       const AdaptedLinear& up, const AdaptedLinear& down, at::Tensor k_cache,
                       at::Tensor v_cache, int64_t window) {
             return DecoderLayer{input_norm, mlp_norm, q_norm, k_norm, {q, k, v, o, gate, up, down},
                                 k_cache,    v_cache,  window};
           }),
           py::kw_only(), py::arg("input_norm"), py::arg("mlp_norm"), py::arg("q_norm"), py::arg("k_norm"),
           py::arg("q"), py::arg("k"), py::arg("v"), py::arg("o"), py::arg("gate"), py::arg("up"),
           py::arg("down"), py::arg("k_cache"), py::arg("v_cache"), py::arg("window"));

  py::class_<Decoder>(m, "Decoder")
      .def(py::init([](std::vector<DecoderLayer> layers, at::Tensor cos, at::Tensor sin, int64_t heads,
                       int64_t kv_heads, int64_t head_size, double scale, double eps) {
             return Decoder(DecoderConfig{heads, kv_heads, head_size, scale, eps}, std::move(layers), cos,
                            sin);
           }),
           py::arg("layers"), py::arg("cos"), py::arg("sin"), py::kw_only(), py::arg("heads"),
           py::arg("kv_heads"), py::arg("head_size"), py::arg("scale"), py::arg("eps"))
      .def(
          "run",
          [](const Decoder& decoder, const at::Tensor& x, const at::Tensor& residual, const at::Tensor& slot,
             const at::Tensor& sequence, const at::Tensor& position, const at::Tensor& kv_index,
             const at::Tensor& block_table, bool all_factored, int64_t first, int64_t last) {
            const py::gil_scoped_release release;
            return decoder.run(x, residual, {slot, sequence, position, kv_index, block_table, all_factored},
                               first, last);
          },
          py::arg("x"), py::arg("residual"), py::arg("slot"), py::arg("sequence"), py::arg("position"),
          py::arg("kv_index"), py::arg("block_table"), py::arg("all_factored"), py::arg("first"),
          py::arg("last"))
      .def("set_merged", &Decoder::set_merged, py::arg("layer"), py::arg("linear"), py::arg("slot"),
           py::arg("panels"));
}
