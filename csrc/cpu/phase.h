// Products that the threads of a team work on together between two barriers.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/integer_rows.h"
#include "cpu/kernels.h"
#include "cpu/team.h"

namespace zweave {

// Some rows of a product.
template <class T>
struct Job {
  Matmul<T> product;
  int64_t row_begin, row_end;

  int64_t panels() const { return divide_up(product.outputs, kPanel); }
  // Time of a panel, in inputs times rows. Up to twelve rows it is that of reading the weights. Integers are
  // half as long to read, and multiplied twice as fast.
  int64_t cost() const {
    int64_t inputs = 1;
    for (int64_t i = 0; i < product.num_terms; ++i) {
      const Term<T>& term = product.terms[i];
      inputs += term.weights.storage == Storage::plain ? term.inputs : divide_up(term.inputs, 2);
    }
    return inputs * std::max<int64_t>(12, row_end - row_begin);
  }
};

// Rows [T, width] that a step's phases hand to one another.
template <class T>
struct Buffer {
  T* data;
  int64_t stride;
  char* integers;  // room for the rows as integers, or null
};

// A thread gets a stretch of the panels of all jobs, laid end to end, of its share of the cost.
template <class T>
class Phase {
 public:
  void clear() {
    jobs_.clear();
    integers_.clear();
    total_ = 0;
  }

  void add(const Matmul<T>& product, int64_t row_begin, int64_t row_end) {
    const int64_t rows = row_end - row_begin, most = divide_up(rows, divide_up(rows, kRows));
    for (int64_t row = row_begin; row < row_end; row += most) {
      jobs_.push_back({product, row, std::min(row + most, row_end)});
      total_ += jobs_.back().panels() * jobs_.back().cost();
    }
    const Term<T>& last = product.terms[product.num_terms - 1];
    if (last.weights.storage == Storage::plain) return;
    const Inputs inputs{last, row_begin, row_end};
    // Products of the same rows share their integers.
    if (std::find(integers_.begin(), integers_.end(), inputs) == integers_.end()) integers_.push_back(inputs);
  }

  bool empty() const { return jobs_.empty(); }

  // Of all jobs, as Job::cost counts it.
  int64_t cost() const { return total_; }

  // The first weights that a thread will read here, or null.
  const void* first_weight(const Team& team) const {
    const void* first = nullptr;
    each_stretch(team, [&](const Job<T>& job, int64_t begin, int64_t) {
      const Weights& weights = job.product.terms[0].weights;
      if (!first) first = weights.panels + begin * weights.panel_bytes;
    });
    return first;
  }

  // Does a thread's share. `next` is what it will read afterwards.
  void run(const TypedKernels<T>& kernel, const Team& team, const void* next) const {
    quantize(kernel, team);
    each_stretch(team, [&](const Job<T>& job, int64_t begin, int64_t end) {
      Matmul<T> product = job.product;
      product.next = next;
      kernel.matmul(product, job.row_begin, job.row_end, begin, end);
    });
  }

 private:
  // Rows that products read as integers.
  struct Inputs {
    Term<T> term;
    int64_t row_begin, row_end;

    bool operator==(const Inputs& other) const {
      return term.integers == other.term.integers && row_begin == other.row_begin && row_end == other.row_end;
    }
  };

  void quantize(const TypedKernels<T>& kernel, const Team& team) const {
    if (integers_.empty()) return;
    for (const Inputs& inputs : integers_) {
      const int64_t blocks = divide_up(inputs.term.inputs, kBlock) * (inputs.row_end - inputs.row_begin);
      team.share(blocks, [&](int64_t begin, int64_t end) {
        kernel.quantize_rows(inputs.term, inputs.row_begin, begin, end);
      });
    }
    team.wait();
  }

  // A panel belongs to the thread in whose share its first unit of cost lies.
  template <class Body>
  void each_stretch(const Team& team, Body body) const {
    const int64_t low = total_ * team.rank / team.size, high = total_ * (team.rank + 1) / team.size;
    int64_t at = 0;
    for (const Job<T>& job : jobs_) {
      const int64_t cost = job.cost(), panels = job.panels();
      const int64_t begin = std::clamp<int64_t>(divide_up(low - at, cost), 0, panels);
      const int64_t end = std::clamp<int64_t>(divide_up(high - at, cost), 0, panels);
      if (begin < end) body(job, begin, end);
      at += cost * panels;
    }
  }

  std::vector<Job<T>> jobs_;
  std::vector<Inputs> integers_;
  int64_t total_ = 0;
};

}  // namespace zweave
