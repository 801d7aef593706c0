// Products that the threads of a team work on together between two barriers.
#pragma once

#include <algorithm>
#include <bit>
#include <deque>
#include <utility>
#include <vector>

#include "cpu/gemm/prepared_rows.h"
#include "cpu/simd/kernels.h"
#include "cpu/threads/team.h"

namespace zweave {

// The least cost of a part of a thread's share: some two microseconds.
constexpr int64_t kPartCost = 6000;

// Some rows of a product.
template <class T>
struct Job {
  Matmul<T> product;
  int64_t row_begin, row_end;
  int64_t prepared[3];  // of each term: index of the phase's Prepared, or -1

  int64_t panels() const { return divide_up(product.outputs, kPanel); }
  // Time of a panel, in plain inputs times rows. Few rows take the time of reading the weights; more multiply
  // integers in half the time.
  int64_t cost() const {
    const int64_t rows = row_end - row_begin;
    int64_t inputs = 1;
    for (int64_t i = 0; i < product.num_terms; ++i) {
      const Term<T>& term = product.terms[i];
      const int64_t bits = bits_of<T>(term.weights.storage), plain = bits_of<T>(Storage::plain);
      inputs += rows < kMemoryBoundRows ? term.inputs * bits / plain : term.inputs / (bits < plain ? 2 : 1);
    }
    inputs += product.num_pages * kPanel;
    return inputs * std::max(kMemoryBoundRows, rows);
  }
};

// The panels of all jobs, laid end to end, are shared by the threads in stretches of equal cost.
template <class T>
class Phase {
 public:
  // rows: of all the jobs' operands.
  void clear(int64_t rows) {
    rows_ = rows;
    jobs_.clear();
    pages_.clear();
    prepared_.clear();
    total_ = 0;
  }

  void add(const Matmul<T>& product, int64_t row_begin, int64_t row_end) {
    each_block(row_begin, row_end, [&](int64_t begin, int64_t end) { add_job(product, begin, end); });
  }

  // The same with pages, for the rows of one block.
  void add(Matmul<T> product, std::vector<Term<T>> pages, int64_t row_begin, int64_t row_end) {
    pages_.push_back(std::move(pages));
    product.pages = pages_.back().data();
    product.num_pages = int64_t(pages_.back().size());
    add_job(product, row_begin, row_end);
  }

  // Calls body(begin, end) for blocks of nearly equal size, of at most kRows rows.
  template <class Body>
  static void each_block(int64_t row_begin, int64_t row_end, Body body) {
    const int64_t rows = row_end - row_begin, most = divide_up(rows, divide_up(rows, kRows));
    for (int64_t row = row_begin; row < row_end; row += most) body(row, std::min(row + most, row_end));
  }

  bool empty() const { return jobs_.empty(); }

  // Of all jobs, as Job::cost counts it.
  int64_t cost() const { return total_; }

  // The first weights that a thread will read here, or null.
  const void* first_weight(const Team& team) const {
    const void* first = nullptr;
    const Share share = share_of(team.rank, team.size);
    each_stretch(share.begin, share.end, [&](const Job<T>& job, int64_t begin, int64_t) {
      const Weights& weights = job.product.terms[0].weights;
      if (!first) first = weights.panels + begin * weights.panel_bytes;
    });
    return first;
  }

  // Computes what falls to a thread. next: what the thread reads afterwards, to be prefetched.
  void run(const TypedKernels<T>& kernel, const Team& team, const void* next) const {
    std::vector<bool> ready(prepared_.size());
    const int parts = num_parts(team.size);
    team.deal(parts, [&](int owner, int part) {
      const Share share = share_of(owner, team.size);
      const bool is_last = part + 1 == parts;
      const int64_t left = share.end - share.begin,
                    end = is_last ? share.end : share.end - (left >> (part + 1));
      const void* after = owner == team.rank && is_last ? next : nullptr;
      each_stretch(share.end - (left >> part), end, [&](const Job<T>& job, int64_t begin, int64_t end) {
        multiply(kernel, team.rank, job, begin, end, after, ready);
      });
    });
  }

 private:
  // What is worked out of rows before a product reads them.
  struct Prepared {
    const char* room;
    bool integers;  // or what a grid wants
    int64_t row_begin, row_end;

    bool operator==(const Prepared&) const = default;
  };

  void add_job(const Matmul<T>& product, int64_t row_begin, int64_t row_end) {
    jobs_.push_back({product, row_begin, row_end, {-1, -1, -1}});
    Job<T>& job = jobs_.back();
    for (int64_t i = 0; i < product.num_terms; ++i) {
      job.prepared[i] = prepared_of(product.terms[i], row_begin, row_end);
    }
    total_ += job.panels() * job.cost();
  }

  // Products of the same rows share it.
  int64_t prepared_of(const Term<T>& term, int64_t row_begin, int64_t row_end) {
    if (!wants_prepared(term.weights.storage)) return -1;
    const Prepared wanted{term.prepared, is_integer(term.weights.storage), row_begin, row_end};
    const auto found = std::find(prepared_.begin(), prepared_.end(), wanted);
    const int64_t index = found - prepared_.begin();
    if (found == prepared_.end()) prepared_.push_back(wanted);
    return index;
  }

  // Panels [begin, end) of a job. ready: what the thread has prepared in this phase.
  void multiply(const TypedKernels<T>& kernel, int rank, const Job<T>& job, int64_t begin, int64_t end,
                const void* next, std::vector<bool>& ready) const {
    Matmul<T> product = job.product;
    product.next = next;
    for (int64_t i = 0; i < product.num_terms; ++i) {
      if (job.prepared[i] < 0) continue;
      // Every thread makes its own: fetching another's from its cache takes longer.
      Term<T>& term = product.terms[i];
      term.prepared += rank * PreparedRows(nullptr, term.inputs).bytes(rows_);
      if (!ready[job.prepared[i]]) kernel.prepare_rows(term, job.row_begin, job.row_end);
      ready[job.prepared[i]] = true;
    }
    kernel.matmul(product, job.row_begin, job.row_end, begin, end);
  }

  // A stretch of cost.
  struct Share {
    int64_t begin, end;
  };

  // Of a share: half of what is left each time, so that threads of unequal speed end together. Few rows are
  // bound by memory, for which the threads' speed matters less than long streams.
  int num_parts(int size) const {
    if (rows_ < kMemoryBoundRows) return 1;
    return std::max<int>(1, std::bit_width(uint64_t(total_ / size / kPartCost)));
  }

  Share share_of(int rank, int size) const { return {total_ * rank / size, total_ * (rank + 1) / size}; }

  // The panels whose first unit of cost lies in [low, high), of many rows in twos, as most tiles have them.
  template <class Body>
  void each_stretch(int64_t low, int64_t high, Body body) const {
    const int64_t together = rows_ < kMemoryBoundRows ? 1 : 2;
    int64_t at = 0;
    for (const Job<T>& job : jobs_) {
      const int64_t cost = together * job.cost(), panels = job.panels();
      const int64_t begin = std::clamp<int64_t>(together * divide_up(low - at, cost), 0, panels);
      const int64_t end = std::clamp<int64_t>(together * divide_up(high - at, cost), 0, panels);
      if (begin < end) body(job, begin, end);
      at += job.cost() * panels;
    }
  }

  std::vector<Job<T>> jobs_;
  std::deque<std::vector<Term<T>>> pages_;  // of the jobs, which point into it
  std::vector<Prepared> prepared_;
  int64_t rows_ = 0;
  int64_t total_ = 0;
};

}  // namespace zweave
