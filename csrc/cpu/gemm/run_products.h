// Products that wait for one another, on one team of threads.
#pragma once

#include <initializer_list>
#include <vector>

#include "cpu/gemm/phase.h"

namespace zweave {

// Cost of products below which other threads are not worth waking: some 100,000 weights and up to twelve
// rows.
constexpr int64_t kWorthWaking = 100000;

// Computes `rows` rows of products, one product after the other. wake(run) calls run(team) on every thread of
// a team.
template <class T, class Wake>
void run_products(const TypedKernels<T>& kernel, std::initializer_list<Matmul<T>> products, int64_t rows,
                  Wake wake) {
  std::vector<Phase<T>> phases(products.size());
  int64_t cost = 0;
  for (size_t i = 0; i < phases.size(); ++i) {
    phases[i].clear(rows);
    phases[i].add(products.begin()[i], 0, rows);
    cost += phases[i].cost();
  }
  const auto run = [&](const Team& team) {
    for (size_t i = 0; i < phases.size(); ++i) {
      if (i > 0) team.wait();
      phases[i].run(kernel, team, i + 1 < phases.size() ? phases[i + 1].first_weight(team) : nullptr);
    }
  };
  if (cost >= kWorthWaking) return wake(run);
  Team::Barrier barrier;
  run(Team(0, 1, barrier));
}

}  // namespace zweave
