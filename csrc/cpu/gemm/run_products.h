// The products of a linear on one team of threads.
#pragma once

#include "cpu/gemm/linear.h"
#include "cpu/gemm/phase.h"

namespace zweave {

// Cost of products (Phase::cost) below which other threads are not worth waking: some 130,000 weights for up
// to kMemoryBoundRows rows.
constexpr int64_t kWorthWaking = 100000;

// Computes `rows` rows. wake(run) calls run(team) on every thread of a team.
template <class T, class Wake>
void run_products(const TypedKernels<T>& kernel, const LinearProducts<T>& products, int64_t rows, Wake wake) {
  Phase<T> phases[2];
  int64_t cost = 0;
  for (int64_t i = 0; i < products.count; ++i) {
    phases[i].clear(rows);
    phases[i].add(products.product[i], 0, rows);
    cost += phases[i].cost();
  }
  const auto run = [&](const Team& team) {
    for (int64_t i = 0; i < products.count; ++i) {
      if (i > 0) team.wait();
      phases[i].run(kernel, team, i + 1 < products.count ? phases[i + 1].first_weight(team) : nullptr);
    }
  };
  if (cost >= kWorthWaking) return wake(run);
  Team::Barrier barrier;
  run(Team(0, 1, barrier));
}

}  // namespace zweave
