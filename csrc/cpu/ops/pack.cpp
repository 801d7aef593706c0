#include "cpu/ops/pack.h"

#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include "cpu/ops/ops.h"
#include "cpu/threads/huge_pages.h"

namespace zweave {
namespace {

template <class T>
std::array<int64_t, 4> panel_shape(int64_t outputs, int64_t inputs) {
  return {divide_up(outputs, kPanel), divide_up(inputs, kPack<T>), kPanel, kPack<T>};
}

// weight [outputs, inputs] to panels, of panel_shape.
template <class T>
void pack_panels(const TypedKernels<T>& kernel, const at::Tensor& weight, const at::Tensor& packed) {
  if (packed.numel() == 0) return;
  const int64_t outputs = weight.size(0), inputs = weight.size(1), panels = packed.size(0);
  const at::Tensor rows = weight.stride(1) == 1 || inputs == 1 ? weight : weight.contiguous();
  at::parallel_for(0, panels, row_grain(kPanel * inputs), [&](int64_t begin, int64_t end) {
    kernel.pack(data<T>(rows), rows.stride(0), outputs, inputs, mutable_data<T>(packed), begin, end);
  });
}

// int4 bytes [rows, columns] of neighbouring inputs to bytes whose nibbles are four inputs apart: columns is
// a multiple of four, which are eight inputs.
at::Tensor nibbles_apart(const at::Tensor& bytes) {
  const at::Tensor eight = at::stack({bytes.bitwise_and(15), bytes.bitwise_right_shift(4)}, 2)
                               .view({bytes.size(0), bytes.size(1) / 4, 2, 4});
  return eight.select(2, 0).bitwise_or(eight.select(2, 1).bitwise_left_shift(4)).view(bytes.sizes());
}

// The inverse.
at::Tensor nibbles_together(const at::Tensor& bytes) {
  const at::Tensor four = bytes.view({bytes.size(0), bytes.size(1) / 4, 4});
  const at::Tensor eight =
      at::cat({four.bitwise_and(15), four.bitwise_right_shift(4)}, 2).view({bytes.size(0), bytes.size(1), 2});
  return eight.select(2, 0).bitwise_or(eight.select(2, 1).bitwise_left_shift(4));
}

// Panels of integers [outputs, columns]: int8, a column an input, or int4, a byte two inputs.
at::Tensor pack_integers(const at::Tensor& weight) {
  const Storage storage = storage_of(weight);
  const int64_t outputs = weight.size(0), columns = weight.size(1);
  const auto shape = integer_panel_shape(storage, outputs, storage == Storage::int8 ? columns : 2 * columns);
  at::Tensor rows = at::zeros({shape[0] * kPanel, shape[1] * 4}, weight.options());
  rows.slice(0, 0, outputs).slice(1, 0, columns).copy_(weight);
  if (storage == Storage::int4) rows = nibbles_apart(rows);
  at::Tensor packed = empty_in_huge_pages(shape, weight.scalar_type());
  return packed.copy_(rows.view({shape[0], kPanel, shape[1], 4}).transpose(1, 2));
}

bool is_integer(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kChar || tensor.scalar_type() == at::kByte;
}

// The matrix [outputs, columns] in panels of `pack` columns side by side.
at::Tensor unpacked(const at::Tensor& packed, int64_t outputs, int64_t columns, int64_t pack) {
  const int64_t panels = divide_up(outputs, kPanel), packs = divide_up(columns, pack);
  Argument{"unpack", "packed", packed}.shape({panels, packs, kPanel, pack});
  return packed.transpose(1, 2)
      .reshape({panels * kPanel, packs * pack})
      .slice(0, 0, outputs)
      .slice(1, 0, columns)
      .clone(at::MemoryFormat::Contiguous);
}

// The same of integers: a column an input of int8, or two of int4.
at::Tensor unpacked_integers(const at::Tensor& packed, int64_t outputs, int64_t columns) {
  const Storage storage = storage_of(packed);
  const auto shape = integer_panel_shape(storage, outputs, storage == Storage::int8 ? columns : 2 * columns);
  Argument{"unpack", "packed", packed}.shape(shape);
  const at::Tensor rows = packed.transpose(1, 2).reshape({shape[0] * kPanel, shape[1] * 4});
  return (storage == Storage::int4 ? nibbles_together(rows) : rows)
      .slice(0, 0, outputs)
      .slice(1, 0, columns)
      .clone(at::MemoryFormat::Contiguous);
}

void check_matrix(const Argument& weight, int64_t outputs, int64_t columns) {
  const at::Tensor& w = weight.tensor;
  TORCH_CHECK(w.dim() == 2 && w.size(0) == outputs && w.size(1) == columns, weight.op, ": ", weight.name,
              " must be packed or have shape [", outputs, ", ", columns, "], not ", w.sizes());
}

}  // namespace

template <class T>
PackedMatrix packed(const TypedKernels<T>& kernel, const Argument& weight, int64_t outputs, int64_t inputs) {
  if (weight.tensor.dim() != 4 || storage_of(weight.tensor) == Storage::plain) weight.dtype(kScalarType<T>);
  if (weight.tensor.dim() == 4) {
    check_packed(weight.op, weight.name, {weight.tensor}, kScalarType<T>, outputs, inputs);
    return {weight.tensor};
  }
  check_matrix(weight, outputs, inputs);
  const at::Tensor panels = empty_tensor(panel_shape<T>(outputs, inputs), weight.tensor.options());
  pack_panels(kernel, weight.tensor, panels);
  return {panels};
}

template <class T>
PackedMatrix packed_factor(const TypedKernels<T>& kernel, const Argument& weight,
                           const std::optional<at::Tensor>& scale, int64_t group, int64_t outputs,
                           int64_t inputs) {
  const Storage storage = storage_of(weight.tensor);
  if (storage == Storage::plain) {
    TORCH_CHECK(!scale, weight.op, ": ", weight.name, " has scales, but is neither int8 nor int4");
    return packed(kernel, weight, outputs, inputs);
  }
  TORCH_CHECK(scale, weight.op, ": ", weight.name, " is int8 or int4 and needs scales");
  PackedMatrix result{weight.tensor, scale, group};
  if (weight.tensor.dim() != 4) {
    check_matrix(weight, outputs, storage == Storage::int8 ? inputs : divide_up(inputs, 2));
    const Argument scales{weight.op, weight.name, *scale};
    scales.dtype(at::kFloat).shape({outputs, -1});
    result.panels = pack_integers(weight.tensor);
    result.scale = empty_tensor(panel_shape<float>(outputs, scale->size(1)), scale->options());
    pack_panels(kernels().f32, *scale, *result.scale);
  }
  check_packed(weight.op, weight.name, result, kScalarType<T>, outputs, inputs);
  return result;
}

#define ZWEAVE_INSTANTIATE(T)                                                              \
  template PackedMatrix packed(const TypedKernels<T>&, const Argument&, int64_t, int64_t); \
  template PackedMatrix packed_factor(const TypedKernels<T>&, const Argument&,             \
                                      const std::optional<at::Tensor>&, int64_t, int64_t, int64_t);
ZWEAVE_INSTANTIATE(float)
ZWEAVE_INSTANTIATE(bf16)
#undef ZWEAVE_INSTANTIATE

namespace ops {

at::Tensor pack(const at::Tensor& weight) {
  TORCH_CHECK(weight.dim() == 2, "pack: weight must be a matrix, not of shape ", weight.sizes());
  if (is_integer(weight)) return pack_integers(weight);
  return dispatch("pack", "weight", weight, [&]<class T>(const TypedKernels<T>& kernel) {
    const at::Tensor packed =
        empty_in_huge_pages(panel_shape<T>(weight.size(0), weight.size(1)), kScalarType<T>);
    pack_panels(kernel, weight, packed);
    return packed;
  });
}

at::Tensor unpack(const at::Tensor& packed, int64_t outputs, int64_t inputs) {
  if (is_integer(packed)) return unpacked_integers(packed, outputs, inputs);
  return dispatch("unpack", "packed", packed, [&]<class T>(const TypedKernels<T>&) {
    return unpacked(packed, outputs, inputs, kPack<T>);
  });
}

}  // namespace ops

}  // namespace zweave
