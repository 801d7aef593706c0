#include "cpu/decoder/page_tensors.h"

#include <set>

#include "cpu/ops/packed_matrix.h"

namespace zweave {
namespace {

constexpr const char* kOp = "ComponentPages";

}  // namespace

void PageTensors::check(at::ScalarType dtype, int64_t outputs, int64_t inputs, int64_t slots) const {
  Argument{kOp, "u", u}.dtype(dtype).shape({-1, -1, -1, -1, -1});
  const int64_t pages = u.size(0);
  Argument{kOp, "vt", vt}.dtype(dtype).shape({pages, -1, -1, -1});
  if (pages > 0) {
    check_packed(kOp, "vt", {vt.narrow(0, 0, 1)}, dtype, kPanel, inputs);
    check_packed(kOp, "u", {u.select(0, 0)}, dtype, outputs, kPanel);
  }
  Argument{kOp, "scale", scale}.dtype(at::kFloat).shape({slots, pages * kPanel});
  Argument{kOp, "pages_of", pages_of}.dtype(at::kInt).shape({slots, -1}).contiguous();
  Argument{kOp, "adapted", adapted}.dtype(at::kByte).shape({slots}).contiguous();
}

int64_t PageTensors::components_of(const at::Tensor& slot) const {
  const int32_t* slots = data<int32_t>(slot);
  std::set<int32_t> found;
  for (const int32_t one : std::set<int32_t>(slots, slots + slot.size(0))) {
    const int32_t* own = data<int32_t>(pages_of) + one * pages_of.size(1);
    for (int64_t i = 0; i < pages_of.size(1) && own[i] >= 0; ++i) {
      TORCH_CHECK(own[i] < u.size(0), kOp, ": slot ", one, " has page ", own[i], " of ", u.size(0));
      found.insert(own[i]);
    }
  }
  return int64_t(found.size()) * kPanel;
}

template <class T>
ComponentPages<T> PageTensors::view() const {
  ComponentPages<T> result{};
  result.vt = weights_of({vt}, 0);
  result.vt.panel_bytes = vt.stride(0) * int64_t(vt.element_size());
  result.u.panels = static_cast<const char*>(u.const_data_ptr());
  result.u.panel_bytes = u.stride(1) * int64_t(u.element_size());
  result.u_page_bytes = u.stride(0) * int64_t(u.element_size());
  result.scale = {data<float>(scale), scale.stride(0)};
  result.pages_of = data<int32_t>(pages_of);
  result.most = pages_of.size(1);
  result.adapted = data<uint8_t>(adapted);
  return result;
}

template ComponentPages<float> PageTensors::view() const;
template ComponentPages<bf16> PageTensors::view() const;

}  // namespace zweave
