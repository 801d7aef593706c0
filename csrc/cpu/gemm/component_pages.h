// Components that single slots bring along, beside those of the decomposition: y += U (scale[slot] * V^T x).
//
// They lie in pages of kPanel components, of which a slot has some: a batch computes the pages of its slots
// and no others. A LoRA is such components: the rows of A are V^T, the columns of B are U.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/gemm/linear.h"
#include "cpu/gemm/phase.h"

namespace zweave {

// The components of a linear.
template <class T>
struct ComponentPages {
  Weights vt;               // V^T [pages * kPanel, inputs]: a page is a panel
  Weights u;                // of each page the panels of U [outputs, kPanel]
  int64_t u_page_bytes;     // from page to page
  SlotTable scale;          // [S, pages * kPanel]
  const int32_t* pages_of;  // [S, most], the pages of each slot, then -1
  int64_t most;
  const uint8_t* adapted;  // [S], whether a slot's components act on this linear

  // The pages of some rows, ascending, each once.
  std::vector<int32_t> of_rows(const int32_t* slot, int64_t begin, int64_t end) const {
    std::vector<int32_t> found;
    for (int64_t t = begin; t < end; ++t) {
      if ((t > begin && slot[t] == slot[t - 1]) || !adapted[slot[t]]) continue;
      const int32_t* own = pages_of + slot[t] * most;
      for (int64_t i = 0; i < most && own[i] >= 0; ++i) found.push_back(own[i]);
    }
    std::sort(found.begin(), found.end());
    found.erase(std::unique(found.begin(), found.end()), found.end());
    return found;
  }

  // Adds the products that turn rows [begin, end) of x into `hidden` [T, pages * kPanel], the given pages
  // side by side.
  void add_first(Phase<T>& phase, const LinearOperands<T>& a, const std::vector<int32_t>& pages,
                 Buffer<T> hidden, int64_t begin, int64_t end) const {
    for (size_t i = 0, next; i < pages.size(); i = next) {
      // Neighbouring pages are one product.
      for (next = i + 1; next < pages.size() && pages[next] == pages[next - 1] + 1;) ++next;
      Matmul<T> product{};
      Weights weights = vt;
      weights.panels += pages[i] * vt.panel_bytes;
      product.terms[product.num_terms++] = {a.x, a.x_stride, weights, a.inputs, nullptr};
      product.outputs = int64_t(next - i) * kPanel;
      product.y = hidden.data + i * kPanel;
      product.y_stride = hidden.stride;
      product.scale = scale.data + pages[i] * kPanel;
      product.scale_stride = scale.stride;
      product.slot = a.slot;
      phase.add(product, begin, end);
    }
  }

  // What continues the sums of a linear's last product.
  std::vector<Term<T>> terms(const std::vector<int32_t>& pages, Buffer<T> hidden) const {
    std::vector<Term<T>> result;
    for (size_t i = 0; i < pages.size(); ++i) {
      Weights weights = u;
      weights.panels += pages[i] * u_page_bytes;
      result.push_back({hidden.data + i * kPanel, hidden.stride, weights, kPanel, nullptr});
    }
    return result;
  }
};

}  // namespace zweave
