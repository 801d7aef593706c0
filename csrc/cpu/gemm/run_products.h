// The products of a linear on one team of threads.
#pragma once

#include "cpu/gemm/linear.h"
#include "cpu/gemm/phase.h"

namespace zweave {

// Cost of products (Phase::cost) below which other threads are not worth waking: some 130,000 weights for up
// to kMemoryBoundRows rows.
constexpr int64_t kWorthWaking = 100000;

// Computes a phase and then one that reads what it writes. wake(run) calls run(team) on every thread of a
// team.
template <class T, class Wake>
void run_phases(const TypedKernels<T>& kernel, const Phase<T> (&phases)[2], Wake wake) {
  const auto run = [&](const Team& team) {
    if (!phases[0].empty()) phases[0].run(kernel, team, phases[1].first_weight(team));
    if (phases[1].empty()) return;
    if (!phases[0].empty()) team.wait();
    phases[1].run(kernel, team, nullptr);
  };
  if (phases[0].cost() + phases[1].cost() >= kWorthWaking) return wake(run);
  Team::Shared shared(1);
  run(Team(0, 1, shared));
}

// Computes `rows` rows.
template <class T, class Wake>
void run_products(const TypedKernels<T>& kernel, const LinearProducts<T>& products, int64_t rows, Wake wake) {
  Phase<T> phases[2];
  for (Phase<T>& phase : phases) phase.clear(rows);
  for (int64_t i = 0; i < products.num_first; ++i) phases[0].add(products.first[i], 0, rows);
  phases[products.num_first > 0].add(products.last, 0, rows);
  run_phases(kernel, phases, wake);
}

}  // namespace zweave
