// The items of a step's attention, and which thread computes which.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/simd/kernels.h"

namespace zweave {

// Whether token t follows token t - 1 in the same sequence.
template <class T>
bool succeeds(const Attention<T>& a, int64_t t) {
  return t > 0 && a.sequence[t] == a.sequence[t - 1] && a.position[t] - 1 == a.position[t - 1];
}

// All items of a step, dealt to threads in stretches of equal cost: contexts differ in length.
class AttentionWork {
 public:
  template <class T>
  AttentionWork(const Attention<T>& a, int64_t tokens) {
    // As many queries as keep their scores in the first-level cache.
    const int64_t group = a.heads / a.kv_heads, most = std::max<int64_t>(1, 48 / group);
    for (int64_t begin = 0, end; begin < tokens; begin = end) {
      for (end = begin + 1; end < tokens && succeeds(a, end) && end - begin < most;) ++end;
      longest_ = std::max(longest_, end - begin);
      int64_t keys = int64_t(a.position[end - 1]) + 1;
      if (a.window > 0) keys = std::min(keys, a.window + end - begin);
      // Time in keys times rows, and some for the item itself.
      const int64_t cost = (keys + 16) * std::max(kMemoryBoundRows, (end - begin) * group);
      for (int64_t head = 0; head < a.kv_heads; ++head) {
        items_.push_back({begin, end, head});
        before_.push_back(total_);
        total_ += cost;
      }
    }
  }

  // Tokens of the longest item.
  int64_t longest() const { return longest_; }

  int64_t size() const { return int64_t(items_.size()); }

  // Calls body(items, count) with the items of a thread: those whose first unit of cost lies in its share.
  template <class Body>
  void share(int64_t rank, int64_t threads, Body body) const {
    const auto at = [&](int64_t part) {
      const auto from = std::lower_bound(before_.begin(), before_.end(), divide_up(total_ * part, threads));
      return from - before_.begin();
    };
    body(items_.data() + at(rank), at(rank + 1) - at(rank));
  }

 private:
  std::vector<AttentionItem> items_;
  std::vector<int64_t> before_;  // cost of an item's predecessors
  int64_t total_ = 0, longest_ = 0;
};

}  // namespace zweave
