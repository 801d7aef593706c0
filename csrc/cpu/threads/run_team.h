// Wakes a team of as many threads as PyTorch uses.
#pragma once

#include <ATen/Parallel.h>
#include <omp.h>

#include "cpu/threads/team.h"

namespace zweave {

// Runs body(team) on as many threads as at::parallel_for would use, all at once. It must not throw.
template <class Body>
void run_team(Body body) {
  const int threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  Team::Shared shared(threads);
  if (threads == 1) return body(Team(0, 1, shared));
#pragma omp parallel num_threads(threads)
  body(Team(omp_get_thread_num(), omp_get_num_threads(), shared));
}

}  // namespace zweave
