#include <ATen/Parallel.h>

#include "cpu/ops/dispatch.h"
#include "cpu/ops/ops.h"

namespace zweave::ops {

at::Tensor mix(const at::Tensor& table, const at::Tensor& alpha) {
  Argument{"mix", "table", table}.dtype(at::kFloat).shape({-1, -1});
  Argument{"mix", "alpha", alpha}.dtype(at::kFloat).shape({-1, table.size(0)});
  const int64_t rows = alpha.size(0), width = table.size(1);
  at::Tensor y = empty_tensor({rows, width}, table.options());
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

}  // namespace zweave::ops
