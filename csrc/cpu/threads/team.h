// A team of threads that stays together over many short phases: waking threads for each would cost more than
// the phases do.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace zweave {

// One thread of a team, and what all of them share.
class Team {
 public:
  struct Shared {
    explicit Shared(int threads) : taken(threads) {}

    struct Taken {
      alignas(64) std::atomic<int> parts[2]{};  // after an even number of rounds and after an odd one
    };
    alignas(64) std::atomic<int> waiting{0};
    alignas(64) std::atomic<int> round{0};
    std::vector<Taken> taken;  // of each thread's share
  };

  Team(int rank, int size, Shared& shared) : rank(rank), size(size), shared_(shared) {}

  // Returns when every thread of the team has called it; what they wrote before is seen by all.
  void wait() const {
    if (size == 1) return;
    const int round = shared_.round.load(std::memory_order_relaxed);
    // Nobody has taken of these since the round before.
    shared_.taken[rank].parts[(round + 1) & 1].store(0, std::memory_order_relaxed);
    if (shared_.waiting.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
      shared_.waiting.store(0, std::memory_order_relaxed);
      shared_.round.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; shared_.round.load(std::memory_order_acquire) == round; ++spins) {
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

  // Calls body(owner, part) for each of `parts` parts of every thread's share, on one of the threads: on its
  // owner, or on another that is done with its own, since on a shared machine one processor may lag behind.
  // Once between two calls of `wait`.
  template <class Body>
  void deal(int parts, Body body) const {
    if (size == 1) {
      for (int part = 0; part < parts; ++part) body(rank, part);
      return;
    }
    const int now = shared_.round.load(std::memory_order_relaxed) & 1;
    for (int i = 0; i < size; ++i) {
      const int owner = (rank + i) % size;
      std::atomic<int>& taken = shared_.taken[owner].parts[now];
      for (int part; (part = taken.fetch_add(1, std::memory_order_relaxed)) < parts;) body(owner, part);
    }
  }

  const int rank, size;

 private:
  static constexpr int kSpins = 20000;

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  Shared& shared_;
};

}  // namespace zweave
