// Component pages of a linear, as the tensors that Python holds.
#pragma once

#include <ATen/core/Tensor.h>

#include "cpu/gemm/component_pages.h"

namespace zweave {

struct PageTensors {
  at::Tensor vt;        // panels of V^T [P, inputs], P = pages * kPanel
  at::Tensor u;         // [pages] panels of U [outputs, kPanel]
  at::Tensor scale;     // [S, P] float32
  at::Tensor pages_of;  // [S, most] int32, the pages of each slot, ascending, then -1
  at::Tensor adapted;   // [S] uint8, whether a slot's components act on this linear

  // Throws unless the parts fit one another.
  void check(at::ScalarType dtype, int64_t outputs, int64_t inputs, int64_t slots) const;

  // The number of components of all pages that some slots [T] have. Throws where a page does not exist.
  int64_t components_of(const at::Tensor& slot) const;

  // The same as pointers.
  template <class T>
  ComponentPages<T> view() const;
};

}  // namespace zweave
