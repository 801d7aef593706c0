// Runs CUDA kernels on a CPU: every thread is a fiber, and the kernel's source is compiled by the host's
// compiler.
//
// It is made to find mistakes, not to be fast. Threads run in an order drawn from a seed and give way
// wherever they meet: at __syncthreads, __syncwarp and the instructions that a warp executes together. Shared
// memory is born as NaN. Asynchronous copies arrive either as late as the kernel's waits allow (and leave NaN
// until then) or at once: what is read too early shows in the first case, what is overwritten too early in
// the second. Some blocks of a dependent launch start before the one it depends on, and among its blocks.
// Build it with AddressSanitizer and operands in buffers of their exact size, and a read outside them ends
// the run.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulator: %s\n", what);
  std::exit(1);
}

struct Dim {
  unsigned x = 1, y = 1, z = 1;
};

enum class Arrival { late, early };

// What all blocks of a run share.
struct Machine {
  Arrival arrival = Arrival::late;
  std::mt19937 order{0};
  bool previous_has_ended = true;
};
inline Machine machine;

// A stack and the place where execution on it stopped.
class Fiber {
 public:
  explicit Fiber(std::function<void()> body) : body_(std::move(body)) {
    if (spare_stacks_.empty()) spare_stacks_.push_back(new_stack());
    stack_ = spare_stacks_.back();
    spare_stacks_.pop_back();
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_;
    context_.uc_stack.ss_size = kStack;
    makecontext(&context_, &Fiber::start, 0);
  }
  Fiber(const Fiber&) = delete;
  ~Fiber() {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(stack_, kStack);
#endif
    spare_stacks_.push_back(stack_);
  }

  bool has_ended() const { return has_ended_; }

  // Runs the body until it gives way or ends.
  void resume() {
    current_ = this;
    switch_to(context_, caller_, stack_, kStack, false);
  }

  static void give_way() { current_->leave(); }

 private:
  static constexpr size_t kStack = 256 * 1024;

  static void* new_stack() {
    void* stack =
        mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) fail("no memory for a thread's stack");
    return stack;
  }

  static void start() {
    Fiber& self = *current_;
    self.arrive(nullptr);
    self.body_();
    self.has_ended_ = true;
    self.leave();
  }

  void leave() {
    switch_to(caller_, context_, caller_stack_, caller_stack_size_, has_ended_);
    // A fiber that has ended is not resumed.
  }

  // AddressSanitizer wants to know which stack is in use.
  void switch_to(ucontext_t& to, ucontext_t& from, [[maybe_unused]] const void* stack,
                 [[maybe_unused]] size_t size, [[maybe_unused]] bool for_good) {
    void* fake_stack = nullptr;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack, stack, size);
#endif
    swapcontext(&from, &to);
    arrive(fake_stack);
  }
  void arrive([[maybe_unused]] void* fake_stack) {
#ifdef __SANITIZE_ADDRESS__
    const void* from = nullptr;
    size_t size = 0;
    __sanitizer_finish_switch_fiber(fake_stack, &from, &size);
    if (from != stack_) caller_stack_ = from, caller_stack_size_ = size;
#endif
  }

  inline static Fiber* current_ = nullptr;
  inline static std::vector<void*> spare_stacks_;
  std::function<void()> body_;
  void* stack_;
  ucontext_t context_, caller_;
  const void* caller_stack_ = nullptr;
  size_t caller_stack_size_ = 0;
  bool has_ended_ = false;
};

// Nobody passes before all have come.
class Meeting {
 public:
  explicit Meeting(int size) : size_(size) {}
  void join() {
    const unsigned turn = turn_;
    if (++present_ == size_) {
      present_ = 0;
      ++turn_;
    }
    while (turn == turn_) Fiber::give_way();
  }
  unsigned turn() const { return turn_; }

 private:
  int size_;
  int present_ = 0;
  unsigned turn_ = 0;
};

// Exchanges a value between the lanes of a warp.
struct Warp {
  static constexpr int kLanes = 32;
  struct Fragment {
    uint32_t a[4], b[2];
  };
  Meeting meeting{kLanes};
  // By turn: a lane may already come to the next exchange while others still read.
  Fragment fragments[2][kLanes];

  const Fragment* exchange(int lane, const Fragment& mine) {
    Fragment* all = fragments[meeting.turn() % 2];
    all[lane] = mine;
    meeting.join();
    return all;
  }
};

// Asynchronous copies of one thread, in the groups that it committed.
class Copies {
 public:
  void begin(void* to, const void* from, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(to) % 16 || (bytes && reinterpret_cast<uintptr_t>(from) % 16)) {
      fail("misaligned asynchronous copy");
    }
    Copy copy = {to, {}};
    if (bytes) std::memcpy(copy.data, from, bytes);
    if (machine.arrival == Arrival::early) return land(copy);
    std::memset(to, 0xff, sizeof copy.data);
    open_.push_back(copy);
  }
  void commit() { groups_.push_back(std::exchange(open_, {})); }
  void wait(size_t pending) {
    for (; groups_.size() > pending; groups_.pop_front()) {
      for (const Copy& copy : groups_.front()) land(copy);
    }
  }

 private:
  struct Copy {
    void* to;
    unsigned char data[16];
  };
  static void land(const Copy& copy) { std::memcpy(copy.to, copy.data, sizeof copy.data); }

  std::vector<Copy> open_;
  std::deque<std::vector<Copy>> groups_;
};

struct Block;

struct Thread {
  Block& block;
  Warp& warp;
  Dim index;
  Copies copies;
  std::unique_ptr<Fiber> fiber;
  bool waits_for_launch = false;
};
inline Thread* self = nullptr;

struct Block {
  Dim index, threads_shape;
  std::vector<unsigned char> shared;
  Meeting all;
  std::deque<Warp> warps;
  std::deque<Thread> threads;

  Block(Dim place, int size, size_t shared_bytes, const std::function<void()>& kernel)
      : index(place), threads_shape{unsigned(size)}, shared(shared_bytes, 0xff), all(size) {
    for (int i = 0; i < size; ++i) {
      if (i % Warp::kLanes == 0) warps.emplace_back();
      threads.push_back({*this, warps.back(), {unsigned(i), 0, 0}, {}, std::make_unique<Fiber>(kernel)});
    }
  }

  // Runs all threads in turn, each round in another order, until they end or wait for the launch before.
  void run() {
    for (int round = 0; round < kForever; ++round) {
      std::vector<Thread*> able;
      for (Thread& thread : threads) {
        const bool waits = thread.waits_for_launch && !machine.previous_has_ended;
        if (!waits && !thread.fiber->has_ended()) able.push_back(&thread);
      }
      if (able.empty()) return;
      std::shuffle(able.begin(), able.end(), machine.order);
      for (Thread* thread : able) {
        self = thread;
        thread->fiber->resume();
      }
    }
    fail("deadlock");
  }

 private:
  // More rounds than any block of the tests needs.
  static constexpr int kForever = 1 << 14;
};

struct Launch {
  Dim blocks;
  int threads;
  size_t shared_bytes;
  std::function<void()> kernel;
  bool follows;  // may start before the launch ahead of it, which follows none, has ended

  size_t size() const { return size_t(blocks.x) * blocks.y; }
  std::unique_ptr<Block> block(size_t i) const {
    const Dim place = {unsigned(i % blocks.x), unsigned(i / blocks.x), 0};
    return std::make_unique<Block>(place, threads, shared_bytes, kernel);
  }
};

// Runs the launches of one stream. Of one that follows another some blocks, drawn from the seed, start among
// those of the other.
inline void run(const std::vector<Launch>& launches) {
  constexpr size_t kMostEarly = 4;
  std::vector<std::unique_ptr<Block>> started;
  for (size_t l = 0; l < launches.size(); ++l) {
    std::vector<std::unique_ptr<Block>> early;
    size_t num_early = 0;
    if (l + 1 < launches.size() && launches[l + 1].follows) {
      if (launches[l].follows) fail("follows a launch that follows another");
      num_early = std::min(launches[l + 1].size(), 1 + machine.order() % kMostEarly);
    }
    machine.previous_has_ended = num_early == 0;
    for (size_t i = started.size(); i < launches[l].size() || early.size() < num_early;) {
      const bool is_early = early.size() < num_early && (i == launches[l].size() || machine.order() % 2);
      if (!is_early) {
        launches[l].block(i++)->run();
        continue;
      }
      early.push_back(launches[l + 1].block(early.size()));
      early.back()->run();
    }
    machine.previous_has_ended = true;
    for (auto& block : started) block->run();
    started = std::move(early);
  }
}

}  // namespace emulator
