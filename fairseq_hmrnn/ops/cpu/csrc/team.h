// Threads that walk through a sequence together: one parallel region per call, a barrier per cell.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "team_limit.h"

namespace hmrnn {

// Thrown out of a barrier where another thread of the team has failed.
struct Aborted {};

constexpr int64_t WAKING = 100000;  // ns that a core which was idle may take to run a thread

class Barrier {
 public:
  void reset(int count) {
    count_ = count;
    arrived_.store(0);
  }

  // Spins first, for the wait is mostly shorter than a system call, then sleeps: there may be fewer cores than threads,
  // and then a thread that spins keeps the one it waits for from running.
  void wait() {
    if (count_ == 1) return;
    const int phase = phase_.load(std::memory_order_acquire);
    if (aborted_.load(std::memory_order_acquire)) throw Aborted();  // that phase was not opened by all: it never ends
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count_) {
      arrived_.store(0, std::memory_order_relaxed);
      advance(phase);
    } else {
      spin(phase);
      while (phase_.load(std::memory_order_acquire) == phase) sleep(phase);
    }
    if (aborted_.load(std::memory_order_acquire)) throw Aborted();
  }

  // Lets every thread that waits, or comes to wait, leave by an exception.
  void abort() {
    aborted_.store(true, std::memory_order_release);
    advance(phase_.load());
  }

  bool used() const { return phase_.load() > 0; }

  // The nanoseconds for which the calling thread has slept at barriers for lack of something to do, since it began.
  static int64_t& slept() {
    static thread_local int64_t nanoseconds = 0;
    return nanoseconds;
  }

 private:
  static constexpr int64_t SPINNING = 30000;  // ns; a number of pauses would be another time on every processor

  // Until the phase is over, or for SPINNING.
  void spin(int phase) const {
    const int64_t until = wall_time() + SPINNING;
    do {
      for (int i = 0; i < 16; ++i) {
        if (phase_.load(std::memory_order_acquire) != phase) return;
        pause();
      }
    } while (wall_time() < until);
  }

  void advance(int phase) {
    if (asleep_.load() > 0) woken_.store(wall_time());
    phase_.store(phase + 1);
    if (asleep_.load() > 0) wake();
  }

#ifdef __linux__
  void sleep(int phase) {
    const int64_t began = wall_time();
    asleep_.fetch_add(1);
    syscall(SYS_futex, &phase_, FUTEX_WAIT_PRIVATE, phase, nullptr, nullptr, 0);
    asleep_.fetch_sub(1);
    const int64_t lasted = wall_time() - began;  // all of it idle where a signal ended it
    const bool goes_on = phase_.load() != phase;
    slept() += goes_on ? std::clamp<int64_t>(woken_.load() + WAKING - began, 0, lasted) : lasted;
  }
  void wake() { syscall(SYS_futex, &phase_, FUTEX_WAKE_PRIVATE, count_, nullptr, nullptr, 0); }
#else
  void sleep(int) {
    const int64_t began = wall_time();
    std::this_thread::yield();
    slept() += wall_time() - began;
  }
  void wake() {}
#endif

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
  std::atomic<int> asleep_{0};
  std::atomic<int64_t> woken_{0};
  std::atomic<bool> aborted_{false};
  static_assert(sizeof(std::atomic<int>) == sizeof(int), "a futex is a plain int");
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

// f(thread, threads, barrier) on at most `size` threads at once. What one of them throws, such as std::bad_alloc, ends
// the others at their next barrier and is thrown here: nothing may leave a parallel region by itself.
template <class F>
void run_team(int size, const F& f) {
  Barrier barrier;
#ifdef _OPENMP
  TeamLimit& limit = TeamLimit::instance();
  const int64_t began = wall_time();
  size = limit.of(size, began);
  if (size > 1) {
    int threads = 1;
    TeamTimes times;
    std::exception_ptr error;
#pragma omp parallel num_threads(size)
    {
      const int64_t late = std::max<int64_t>(0, wall_time() - began - WAKING);
#pragma omp single
      barrier.reset(threads = omp_get_num_threads());
      const int64_t entered = wall_time(), ran = running_time(), slept = Barrier::slept();
      try {
        f(omp_get_thread_num(), threads, barrier);
      } catch (const Aborted&) {
      } catch (...) {
#pragma omp critical(hmrnn_error)
        if (!error) error = std::current_exception();
        barrier.abort();
      }
      const int64_t running = running_time() - ran, idle = wall_time() - entered - running;
#pragma omp critical(hmrnn_times)
      {
        times.running += running;
        times.without_core = std::max(times.without_core, late + idle - (Barrier::slept() - slept));
      }
    }
    if (error) std::rethrow_exception(error);
    const int64_t now = wall_time();
    times.elapsed = now - began;
    if (barrier.used()) limit.learn(threads, times, now);
    return;
  }
#endif
  f(0, 1, barrier);
}

// f(first, last) on shares of [0, count), each of `grain` or more: by this thread alone where a team would have one,
// else by torch's, all of which take part in every parallel region.
template <class F>
void parallel_for(int64_t count, int64_t grain, const F& f) {
  const bool alone = TeamLimit::instance().most(wall_time()) == 1;
  at::parallel_for(0, count, alone ? std::max(grain, count) : grain, f);
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
