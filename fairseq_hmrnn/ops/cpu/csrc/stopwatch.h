// Where the time of a call goes, as its first thread sees it; waiting at a barrier counts to what was waited for.
#pragma once

#include <atomic>
#include <chrono>

namespace hmrnn {

enum Phase { FORWARD_PRODUCTS, FORWARD_CELLS, BACKWARD_PRODUCTS, BACKWARD_CELLS, LARGE_PRODUCTS, PHASES };

// Seconds in each phase, of all calls so far.
inline std::atomic<double>* phase_seconds() {
  static std::atomic<double> seconds[PHASES] = {};
  return seconds;
}

class Stopwatch {
 public:
  explicit Stopwatch(bool runs) : runs_(runs) {
    if (runs_) last_ = Clock::now();
  }
  ~Stopwatch() {
    for (int phase = 0; runs_ && phase < PHASES; ++phase) {
      auto& seconds = phase_seconds()[phase];
      seconds.store(seconds.load(std::memory_order_relaxed) + spent_[phase], std::memory_order_relaxed);
    }
  }
  // Adds the time since the last call to this phase.
  void lap(Phase phase) {
    if (!runs_) return;
    const auto now = Clock::now();
    spent_[phase] += std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }

 private:
  using Clock = std::chrono::steady_clock;
  const bool runs_;
  Clock::time_point last_;
  double spent_[PHASES] = {};
};

}  // namespace hmrnn
