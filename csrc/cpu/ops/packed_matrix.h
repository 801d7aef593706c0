// A packed matrix as the tensors that hold it.
#pragma once

#include <array>

#include "cpu/gemm/prepared_rows.h"
#include "cpu/ops/dispatch.h"

namespace zweave {

// Layouts: kernels/layout/packed.py.
struct PackedMatrix {
  at::Tensor panels;
  std::optional<at::Tensor> scale;  // of int8 and int4 panels
  int64_t group = 0;                // inputs that share a scale, 0: all of them
};

// By dtype and, of a grid, by the lines of a block.
Storage storage_of(const at::Tensor& panels);

// Shape of the panels of int8 or int4.
std::array<int64_t, 4> integer_panel_shape(Storage storage, int64_t outputs, int64_t inputs);

// Throws unless `matrix` holds a packed [outputs, inputs] of this dtype, or of integers with scales.
void check_packed(const char* op, const char* name, const PackedMatrix& matrix, at::ScalarType dtype,
                  int64_t outputs, int64_t inputs);

// The same as pointers.
Weights weights_of(const PackedMatrix& matrix, int64_t inputs);

}  // namespace zweave
