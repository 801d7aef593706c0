// The schema of every op, once; csrc/cpu and csrc/cuda only add implementations.
#include <Python.h>
#include <torch/library.h>

#include <exception>

#include "cpu/isa.h"

TORCH_LIBRARY(zweave, m) {
  m.def("pack(Tensor weight) -> Tensor");
  m.def("unpack(Tensor packed, int out_features, int in_features) -> Tensor");
  m.def(
      "linear(Tensor x, Tensor weight, Tensor? bias, int out_features, ScalarType? out_dtype=None) -> "
      "Tensor");
  m.def(
      "svf_linear(Tensor x, Tensor vt, Tensor u, Tensor scale, Tensor slot, Tensor? bias, int out_features) "
      "-> Tensor");
  m.def("mix(Tensor table, Tensor alpha) -> Tensor");
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  m.def("add_rms_norm(Tensor x, Tensor(a!) residual, Tensor weight, float eps) -> Tensor");
  m.def("rope(Tensor(a!) q, Tensor(b!) k, Tensor cos, Tensor sin, Tensor position) -> ()");
  m.def("silu_mul(Tensor gate, Tensor up) -> Tensor");
  m.def("write_kv(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor index) -> ()");
  m.def(
      "paged_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor sequence, "
      "Tensor position, float scale, int window) -> Tensor");
}

static PyObject* cpu_isa(PyObject*, PyObject*) {
  try {
    return PyUnicode_FromString(zweave::kernels().name);
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

static PyMethodDef methods[] = {
    {"cpu_isa", cpu_isa, METH_NOARGS, "Name of the instruction set that the CPU ops use."},
    {nullptr, nullptr, 0, nullptr},
};

// `import zweave.kernels._C` loads the library; the ops live in torch.ops.zweave.
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods};
PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
