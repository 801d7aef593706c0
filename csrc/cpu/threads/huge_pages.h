// Memory for what a step streams through: weights and caches.
#pragma once

#include <ATen/core/Tensor.h>

namespace zweave {

// An uninitialised contiguous CPU tensor in pages of 2 MiB, where the system grants them. With pages of 4 KiB
// a stream of weights waits for address translations: two cores of a virtual Zen 4 read 26 GB/s through
// them and 31 to 45 GB/s through large ones. Tensors share stretches of memory, which are returned when the
// last tensor of a stretch is gone.
at::Tensor empty_in_huge_pages(at::IntArrayRef sizes, at::ScalarType dtype);

// The same, zero. Pages that are never written take no memory.
at::Tensor zeros_in_huge_pages(at::IntArrayRef sizes, at::ScalarType dtype);

}  // namespace zweave
