#include "cpu/ops/dispatch.h"

#include <ATen/ops/empty.h>

namespace zweave {

at::Tensor empty_tensor(at::IntArrayRef shape, const at::TensorOptions& options) {
  return at::empty(shape, options);
}

}  // namespace zweave
