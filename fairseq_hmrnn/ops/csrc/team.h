// Threads that walk through a sequence together: one parallel region per call, a barrier per cell.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace hmrnn {

class Barrier {
 public:
  void reset(int count) {
    count_ = count;
    arrived_.store(0);
  }

  // Spins, for the wait is mostly shorter than a system call; gives up its core after a while, for there may be
  // fewer cores than threads.
  void wait() {
    if (count_ == 1) return;
    const int phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count_) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
      if (spins < 4000)
        pause();
      else
        std::this_thread::yield();
    }
  }

 private:
  static void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
  }

  int count_ = 1;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> phase_{0};
};

// Threads worth using: those torch would use, at most `parts`, each with some 10 us of work between two barriers.
inline int team_size(int64_t parts, int64_t products_per_cell) {
#ifdef _OPENMP
  if (at::in_parallel_region()) return 1;
  const int64_t useful = std::min(parts, products_per_cell / 50000);
  return int(std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), useful)));
#else
  return 1;
#endif
}

// f(thread, threads, barrier) on at most `size` threads at once.
template <class F>
void run_team(int size, const F& f) {
  Barrier barrier;
#ifdef _OPENMP
  if (size > 1) {
#pragma omp parallel num_threads(size)
    {
#pragma omp single
      barrier.reset(omp_get_num_threads());
      f(omp_get_thread_num(), omp_get_num_threads(), barrier);
    }
    return;
  }
#endif
  f(0, 1, barrier);
}

// The share [first, last) of `count` parts that belongs to one thread.
struct Share {
  int64_t first, last;
  Share(int64_t count, int thread, int threads)
      : first(count * thread / threads), last(count * (thread + 1) / threads) {}
  int64_t size() const { return last - first; }
  // The i-th part from either end. A large weight that is read from its end to its start every other time finds the
  // end still in the cache.
  int64_t at(int64_t i, bool backwards) const { return backwards ? last - 1 - i : first + i; }
};

}  // namespace hmrnn
