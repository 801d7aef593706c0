#include <ATen/Parallel.h>
#include <torch/library.h>

#include "cpu/checks.h"
#include "cpu/huge_pages.h"
#include "cpu/product.h"

namespace zweave {

template <class T>
void pack_panels(const TypedKernels<T>& kernel, const at::Tensor& weight, const at::Tensor& packed) {
  if (packed.numel() == 0) return;
  const int64_t outputs = weight.size(0), inputs = weight.size(1), panels = packed.size(0);
  const at::Tensor rows = weight.stride(1) == 1 || inputs == 1 ? weight : weight.contiguous();
  at::parallel_for(0, panels, row_grain(kPanel * inputs), [&](int64_t begin, int64_t end) {
    kernel.pack(data<T>(rows), rows.stride(0), outputs, inputs, mutable_data<T>(packed), begin, end);
  });
}

template void pack_panels(const TypedKernels<float>&, const at::Tensor&, const at::Tensor&);
template void pack_panels(const TypedKernels<bf16>&, const at::Tensor&, const at::Tensor&);

namespace {

at::Tensor pack(const at::Tensor& weight) {
  TORCH_CHECK(weight.dim() == 2, "pack: weight must be a matrix, not of shape ", weight.sizes());
  return dispatch("pack", "weight", weight, [&]<class T>(const TypedKernels<T>& kernel) {
    const at::Tensor packed =
        empty_in_huge_pages(panel_shape<T>(weight.size(0), weight.size(1)), kScalarType<T>);
    pack_panels(kernel, weight, packed);
    return packed;
  });
}

at::Tensor unpack(const at::Tensor& packed, int64_t outputs, int64_t inputs) {
  return dispatch("unpack", "packed", packed, [&]<class T>(const TypedKernels<T>&) {
    const int64_t panels = divide_up(outputs, kPanel), groups = divide_up(inputs, kGroup<T>);
    Argument{"unpack", "packed", packed}.shape(panel_shape<T>(outputs, inputs));
    return packed.transpose(1, 2)
        .reshape({panels * kPanel, groups * kGroup<T>})
        .slice(0, 0, outputs)
        .slice(1, 0, inputs)
        .clone(at::MemoryFormat::Contiguous);
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(zweave, CPU, m) {
  m.impl("pack", pack);
  m.impl("unpack", unpack);
}

}  // namespace zweave
