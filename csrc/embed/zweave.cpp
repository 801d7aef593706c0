#include "embed/zweave.h"

#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "cpu/gemm/run_products.h"
#include "cpu/isa/isa.h"

namespace zweave::embed {
namespace {

void require(bool holds, const char* function, const char* what) {
  if (!holds) throw std::invalid_argument(std::string(function) + ": " + what);
}

// Calls run(kernels of the dtype).
template <class Run>
auto dispatch(Dtype dtype, Run run) {
  return dtype == Dtype::bfloat16 ? run(kernels().b16) : run(kernels().f32);
}

template <class T>
int64_t panel_bytes(int64_t columns) {
  return divide_up(columns, kPack<T>) * kPanel * kPack<T> * int64_t(sizeof(T));
}

template <class T>
Weights weights_of(const Matrix& matrix) {
  Weights weights{};
  weights.panels = static_cast<const char*>(matrix.panels);
  weights.panel_bytes = panel_bytes<T>(matrix.columns);
  weights.storage = Storage::plain;
  return weights;
}

template <class T>
LinearOperands<T> operands(const Input& x, int64_t outputs, const void* bias, const Output& y) {
  LinearOperands<T> a{};
  a.x = static_cast<const T*>(x.data);
  a.x_stride = x.stride;
  a.inputs = x.width;
  a.outputs = outputs;
  a.bias = static_cast<const T*>(bias);
  a.y = static_cast<T*>(y.data);
  a.y_stride = y.stride;
  return a;
}

template <class T>
void add_factors(LinearOperands<T>& a, const Matrix& vt, const Matrix& u, const Scales& scales) {
  a.factors = {vt.rows, weights_of<T>(vt), weights_of<T>(u), {scales.data, scales.stride}, {}};
  a.slot = scales.slot;
}

// Rows [tokens, width] between two products.
template <class T>
class Hidden {
 public:
  Hidden(int64_t tokens, int64_t width) : stride(row_stride<T>(width)) {
    const size_t bytes =
        size_t(divide_up(std::max<int64_t>(1, tokens * stride) * int64_t(sizeof(T)), 64) * 64);
    data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    if (!data_) throw std::bad_alloc();
  }
  T* data() const { return data_.get(); }

  const int64_t stride;

 private:
  struct Free {
    void operator()(T* data) const { std::free(data); }
  };
  std::unique_ptr<T, Free> data_;
};

template <class T>
void compute(const TypedKernels<T>& kernel, LinearMode mode, const LinearOperands<T>& a, int64_t tokens,
             int threads) {
  run_products(kernel, build_linear(mode, a), tokens, [&](const auto& run) {
    const int wanted = omp_in_parallel() ? 1 : threads > 0 ? threads : omp_get_max_threads();
    Team::Shared shared(wanted);
#pragma omp parallel num_threads(wanted)
    run(Team(omp_get_thread_num(), omp_get_num_threads(), shared));
  });
}

void check_matrix(const char* function, const Matrix& matrix) {
  require(matrix.panels && matrix.rows >= 0 && matrix.columns >= 0, function, "a matrix has no panels");
  require(reinterpret_cast<uintptr_t>(matrix.panels) % 64 == 0, function, "panels must be aligned to 64");
}

void check_rows(const char* function, const Input& x, const Matrix& in, const Matrix& out, const Output& y) {
  check_matrix(function, in);
  check_matrix(function, out);
  require(in.dtype == out.dtype, function, "the matrices must share their dtype");
  require(x.tokens >= 0 && x.width == in.columns, function, "x does not fit the matrices");
  require(x.tokens == 0 || (x.data && y.data), function, "x or y is null");
  require(x.stride >= x.width && y.stride >= out.rows, function, "rows of x or y overlap");
}

void check_scales(const char* function, const Input& x, const Matrix& vt, const Matrix& u,
                  const Scales& scales) {
  require(vt.rows == u.columns && scales.width == vt.rows, function,
          "vt, u and the scales must share their rank");
  require(scales.stride >= scales.width, function, "rows of scales overlap");
  require(x.tokens == 0 || (scales.slot && (scales.data || !scales.width)), function,
          "scales or slots are null");
  const bool inside = std::all_of(scales.slot, scales.slot + x.tokens,
                                  [&](int32_t slot) { return slot >= 0 && slot < scales.slots; });
  require(inside, function, "a token's slot lies outside the scales");
}

}  // namespace

int64_t packed_bytes(Dtype dtype, int64_t rows, int64_t columns) {
  require(rows >= 0 && columns >= 0, "packed_bytes", "sizes must be at least 0");
  const int64_t panel = dtype == Dtype::bfloat16 ? panel_bytes<bf16>(columns) : panel_bytes<float>(columns);
  return divide_up(rows, kPanel) * panel;
}

Matrix pack(Dtype dtype, const void* matrix, int64_t stride, int64_t rows, int64_t columns, void* panels) {
  const Matrix result{dtype, rows, columns, panels};
  check_matrix("pack", result);
  require(packed_bytes(dtype, rows, columns) == 0 || matrix, "pack", "the matrix is null");
  require(stride >= columns, "pack", "rows of the matrix overlap");
  dispatch(dtype, [&]<class T>(const TypedKernels<T>& kernel) {
    kernel.pack(static_cast<const T*>(matrix), stride, rows, columns, static_cast<T*>(panels), 0,
                divide_up(rows, kPanel));
  });
  return result;
}

void linear(const Input& x, const Matrix& w, const void* bias, const Output& y, int threads) {
  check_rows("linear", x, w, w, y);
  if (x.tokens == 0 || w.rows == 0) return;
  dispatch(w.dtype, [&]<class T>(const TypedKernels<T>& kernel) {
    LinearOperands<T> a = operands<T>(x, w.rows, bias, y);
    a.dense = weights_of<T>(w);
    compute(kernel, LinearMode::dense, a, x.tokens, threads);
  });
}

void svf_linear(const Input& x, const Matrix& vt, const Matrix& u, const Scales& scale, const void* bias,
                const Output& y, int threads) {
  check_rows("svf_linear", x, vt, u, y);
  check_scales("svf_linear", x, vt, u, scale);
  if (x.tokens == 0 || u.rows == 0) return;
  dispatch(u.dtype, [&]<class T>(const TypedKernels<T>& kernel) {
    const Hidden<T> hidden(x.tokens, vt.rows);
    LinearOperands<T> a = operands<T>(x, u.rows, bias, y);
    add_factors(a, vt, u, scale);
    a.factors.hidden = {hidden.data(), hidden.stride, nullptr};
    compute(kernel, LinearMode::factored, a, x.tokens, threads);
  });
}

void svf_delta_linear(const Input& x, const Matrix& w, const Matrix& vt, const Matrix& u, const Scales& delta,
                      const void* bias, const Output& y, int threads) {
  check_rows("svf_delta_linear", x, vt, u, y);
  check_rows("svf_delta_linear", x, w, u, y);
  require(w.rows == u.rows, "svf_delta_linear", "w and u must share their rows");
  check_scales("svf_delta_linear", x, vt, u, delta);
  if (x.tokens == 0 || w.rows == 0) return;
  const bool adapted = std::any_of(delta.slot, delta.slot + x.tokens, [](int32_t slot) { return slot != 0; });
  if (!adapted || vt.rows == 0) return linear(x, w, bias, y, threads);
  dispatch(w.dtype, [&]<class T>(const TypedKernels<T>& kernel) {
    const Hidden<T> hidden(x.tokens, vt.rows);
    LinearOperands<T> a = operands<T>(x, w.rows, bias, y);
    a.dense = weights_of<T>(w);
    add_factors(a, vt, u, delta);
    a.zero_base = true;
    a.factors.hidden = {hidden.data(), hidden.stride, nullptr};
    compute(kernel, LinearMode::delta, a, x.tokens, threads);
  });
}

const char* instruction_set() { return kernels().name; }

}  // namespace zweave::embed
