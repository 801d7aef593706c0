// The CPU kernels for programs without Python or PyTorch: packed weights, and the linears over them.
//
//   linear            y[t] = W x[t] + bias
//   svf_linear        y[t] = U (scale[slot[t]] * (Vt x[t])) + bias
//   svf_delta_linear  y[t] = W x[t] + U (delta[slot[t]] * (Vt x[t])) + bias,  W x[t] + bias alone in slot 0
//
//   x [T, N]   W [M, N]   Vt [R, N]   U [M, R]   scale, delta [S, R]   slot [T]   bias [M]   ->   y [T, M]
//
// Results have the bits of the Python ops of the same names, and a row's do not depend on what shares its
// batch. All functions may be called from several threads at once. Where arguments do not fit they throw
// std::invalid_argument with one line. Build: docs/embedding.md.
#pragma once

#include <cstdint>

namespace zweave::embed {

// Changes with every change of what is declared here that a caller could notice.
constexpr int kVersion = 1;

// bfloat16: the upper half of a float32.
enum class Dtype : uint8_t { float32, bfloat16 };

// A matrix [rows, columns] in kernel order. It owns nothing: `panels` must live as long as it is used.
struct Matrix {
  Dtype dtype;
  int64_t rows, columns;
  const void* panels;
};

// Activations [tokens, width] of the weights' dtype; `stride` values from row to row. Strides of a multiple
// of 2 KiB are right, but slow from five tokens on.
struct Input {
  const void* data;
  int64_t stride, tokens, width;
};
struct Output {
  void* data;
  int64_t stride;
};

// Rows [slots, width] of scales, row 0 the base's, and the row of each token.
struct Scales {
  const float* data;
  int64_t stride, slots, width;
  const int32_t* slot;  // [tokens], 0 <= slot < slots
};

// Bytes of a matrix in kernel order.
int64_t packed_bytes(Dtype dtype, int64_t rows, int64_t columns);

// Brings a matrix [rows, columns] of `stride` values from row to row into kernel order.
// panels: packed_bytes, aligned to 64. They are those that the Python op `pack` gives.
Matrix pack(Dtype dtype, const void* matrix, int64_t stride, int64_t rows, int64_t columns, void* panels);

// bias: [M] of the weights' dtype, or null. threads: 0 for as many as OpenMP uses.
void linear(const Input& x, const Matrix& w, const void* bias, const Output& y, int threads = 0);

// scale: sigma * z of each slot.
void svf_linear(const Input& x, const Matrix& vt, const Matrix& u, const Scales& scale, const void* bias,
                const Output& y, int threads = 0);

// delta: sigma * (z - 1) of each slot's kept components, the columns of u.
void svf_delta_linear(const Input& x, const Matrix& w, const Matrix& vt, const Matrix& u, const Scales& delta,
                      const void* bias, const Output& y, int threads = 0);

// "amx", "avx512", "avx512_vnni", "avx2" or "scalar": the best that this processor has, or what
// ZWEAVE_CPU_ISA names. Throws std::runtime_error if that is unknown or not supported.
const char* instruction_set();

}  // namespace zweave::embed
