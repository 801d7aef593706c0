#include "cpu/ops/packed_matrix.h"

#include "cpu/gemm/grid_layout.h"

namespace zweave {
namespace {

int64_t group_of(const PackedMatrix& matrix, int64_t inputs) {
  return matrix.group > 0 ? matrix.group : std::max<int64_t>(1, inputs);
}

// Blocks and lines of a block.
template <Storage storage>
std::array<int64_t, 2> grid_blocks(int64_t inputs) {
  using Layout = GridLayout<storage>;
  return {Layout::bytes(inputs / kGroup) / Layout::block_bytes, Layout::block_bytes / 64};
}

std::array<int64_t, 2> grid_blocks(Storage storage, int64_t inputs) {
  switch (storage) {
    case Storage::grid4:
      return grid_blocks<Storage::grid4>(inputs);
    case Storage::grid8:
      return grid_blocks<Storage::grid8>(inputs);
    case Storage::grid4_minimum:
      return grid_blocks<Storage::grid4_minimum>(inputs);
    default:
      return grid_blocks<Storage::grid4_wide>(inputs);
  }
}

}  // namespace

Storage storage_of(const at::Tensor& panels) {
  if (panels.scalar_type() == at::kChar) return Storage::int8;
  if (panels.scalar_type() != at::kByte) return Storage::plain;
  if (panels.dim() == 4 && panels.size(3) == 64) {
    for (const Storage grid : {Storage::grid4, Storage::grid8, Storage::grid4_minimum, Storage::grid4_wide}) {
      if (grid_blocks(grid, kGroup)[1] == panels.size(2)) return grid;
    }
  }
  return Storage::int4;
}

std::array<int64_t, 4> integer_panel_shape(Storage storage, int64_t outputs, int64_t inputs) {
  // A line of a panel holds four inputs of int8 and eight of int4.
  const int64_t lines = divide_up(inputs, 8) * (storage == Storage::int8 ? 2 : 1);
  return {divide_up(outputs, kPanel), lines, kPanel, 4};
}

void check_packed(const char* op, const char* name, const PackedMatrix& matrix, at::ScalarType dtype,
                  int64_t outputs, int64_t inputs) {
  const int64_t panels = divide_up(outputs, kPanel);
  const Argument packed{op, name, matrix.panels};
  const Storage storage = storage_of(matrix.panels);
  if (storage == Storage::plain) {
    TORCH_CHECK(!matrix.scale, op, ": ", name, " has scales, but is neither int8 nor int4");
    const int64_t pack = dtype == at::kBFloat16 ? kPack<bf16> : kPack<float>;
    packed.dtype(dtype).shape({panels, divide_up(inputs, pack), kPanel, pack}).contiguous();
    return;
  }
  if (!is_integer(storage)) {
    TORCH_CHECK(inputs % kGroup == 0, op, ": ", name, " lies on a grid, in groups of ", kGroup,
                " inputs, not of ", inputs);
    const auto [blocks, lines] = grid_blocks(storage, inputs);
    packed.dtype(at::kByte).shape({panels, blocks, lines, 64}).contiguous();
    return;
  }
  packed.dtype(matrix.panels.scalar_type()).shape(integer_panel_shape(storage, outputs, inputs)).contiguous();
  TORCH_CHECK(matrix.scale, op, ": ", name, " is int8 or int4 and needs scales");
  TORCH_CHECK(matrix.group >= 0 && (matrix.group % kBlock == 0 || matrix.group >= inputs), op, ": ", name,
              " has groups of ", matrix.group, " inputs, not of a multiple of ", kBlock);
  Argument{op, name, *matrix.scale}
      .dtype(at::kFloat)
      .shape({panels, divide_up(inputs, group_of(matrix, inputs)), kPanel, 1})
      .contiguous();
}

Weights weights_of(const PackedMatrix& matrix, int64_t inputs) {
  const at::Tensor& panels = matrix.panels;
  Weights weights{};
  weights.panels = static_cast<const char*>(panels.const_data_ptr());
  weights.panel_bytes = panels.size(1) * panels.size(2) * panels.size(3) * int64_t(panels.element_size());
  weights.storage = storage_of(panels);
  if (matrix.scale) {
    weights.scales = data<float>(*matrix.scale);
    weights.scale_groups = matrix.scale->size(1);
    weights.group = group_of(matrix, inputs);
  }
  return weights;
}

}  // namespace zweave
