#include <ATen/Parallel.h>
#include <torch/library.h>

#include "cpu/ops/checks.h"

namespace zweave {
namespace {

at::Tensor mix(const at::Tensor& table, const at::Tensor& alpha) {
  Argument{"mix", "table", table}.dtype(at::kFloat).shape({-1, -1});
  Argument{"mix", "alpha", alpha}.dtype(at::kFloat).shape({-1, table.size(0)});
  const int64_t rows = alpha.size(0), width = table.size(1);
  at::Tensor y = at::empty({rows, width}, table.options());
  if (y.numel() == 0) return y;
  const Mix call{data<float>(table),
                 table.stride(0),
                 data<float>(alpha),
                 alpha.stride(0),
                 mutable_data<float>(y),
                 table.size(0),
                 width};
  at::parallel_for(0, width, row_grain(rows * (table.size(0) + 1)),
                   [&](int64_t begin, int64_t end) { kernels().mix(call, rows, begin, end); });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(zweave, CPU, m) { m.impl("mix", mix); }

}  // namespace zweave
