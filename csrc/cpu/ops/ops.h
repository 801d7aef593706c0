// The ops on a CPU, one file each; bindings.cpp has their schemas. What they compute: kernels/*.py.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace zweave::ops {

at::Tensor pack(const at::Tensor& weight);
at::Tensor unpack(const at::Tensor& packed, int64_t outputs, int64_t inputs);

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                  int64_t outputs, std::optional<at::ScalarType> out_dtype);
at::Tensor svf_linear(const at::Tensor& x, const at::Tensor& vt, const at::Tensor& u, const at::Tensor& scale,
                      const at::Tensor& slot, const std::optional<at::Tensor>& bias, int64_t outputs);
at::Tensor svf_delta_linear(const at::Tensor& x, const at::Tensor& w, const at::Tensor& vt,
                            const at::Tensor& u, const at::Tensor& delta, const at::Tensor& slot,
                            const std::optional<at::Tensor>& bias, int64_t outputs,
                            const std::optional<at::Tensor>& vt_scale,
                            const std::optional<at::Tensor>& u_scale, int64_t vt_group, int64_t u_group);

at::Tensor mix(const at::Tensor& table, const at::Tensor& alpha);
std::tuple<at::Tensor, at::Tensor> greedy(const at::Tensor& logits);

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);
at::Tensor add_rms_norm(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
                        double eps);
void rope(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cos, const at::Tensor& sin,
          const at::Tensor& position);
at::Tensor silu_mul(const at::Tensor& gate, const at::Tensor& up);

void write_kv(const at::Tensor& k, const at::Tensor& v, const at::Tensor& k_cache, const at::Tensor& v_cache,
              const at::Tensor& index);
at::Tensor paged_attention(const at::Tensor& q, const at::Tensor& k_cache, const at::Tensor& v_cache,
                           const at::Tensor& block_table, const at::Tensor& sequence,
                           const at::Tensor& position, double scale, int64_t window);

}  // namespace zweave::ops
