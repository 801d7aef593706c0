// A team of threads that stays together over many short phases: waking threads for each would cost more than
// the phases do.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

namespace zweave {

// One thread of a team, and the barrier that all of them share.
class Team {
 public:
  struct Barrier {
    alignas(64) std::atomic<int> waiting{0};
    alignas(64) std::atomic<int> round{0};
  };

  Team(int rank, int size, Barrier& barrier) : rank(rank), size(size), barrier_(barrier) {}

  // Returns when every thread of the team has called it; what they wrote before is seen by all.
  void wait() const {
    if (size == 1) return;
    const int round = barrier_.round.load(std::memory_order_relaxed);
    if (barrier_.waiting.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
      barrier_.waiting.store(0, std::memory_order_relaxed);
      barrier_.round.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; barrier_.round.load(std::memory_order_acquire) == round; ++spins) {
      // A thread that is not running must get the processor that the others wait on.
      if (spins > kSpins) {
        std::this_thread::yield();
      } else {
        pause();
      }
    }
  }

  // Calls body(begin, end) with this thread's share of [0, count).
  template <class Body>
  void share(int64_t count, Body body) const {
    const int64_t begin = count * rank / size, end = count * (rank + 1) / size;
    if (begin < end) body(begin, end);
  }

  const int rank, size;

 private:
  static constexpr int kSpins = 20000;

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  Barrier& barrier_;
};

}  // namespace zweave
