// How many threads a team may have while other programs compute on the same cores.
#pragma once

#include <time.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstdint>
#include <mutex>

namespace hmrnn {

constexpr int64_t SECOND = 1000000000;  // in nanoseconds

// Nanoseconds since some time in the past, and nanoseconds in which the calling thread has run.
inline int64_t wall_time() { return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1); }
inline int64_t running_time() {
#ifdef CLOCK_THREAD_CPUTIME_ID
  timespec time;
  if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time) == 0) return time.tv_sec * SECOND + time.tv_nsec;
#endif
  return wall_time();
}

// What the threads of a call did, in nanoseconds: how long it took, how long they ran, together, and how long the one
// that lost most could have run but had no core.
struct TeamTimes {
  int64_t elapsed = 0, running = 0, without_core = 0;
};

// All threads wait where one has no core, and one that has slept at a barrier may find its core taken: a cell then takes
// as long as the scheduler lets another program compute. A team that is one smaller leaves a core to that program. So,
// as networks control congestion: one thread fewer where one had no core for an eighth of the time and all together
// needed no more cores than the smaller team has, one more after a pause, and a longer pause where that was too many.
// Results do not depend on the number of threads.
class TeamLimit {
 public:
  static TeamLimit& instance() {
    static TeamLimit limit;
    return limit;
  }

  // The most threads of a call, as far as calls have shown lately; NONE where none was too many. now: wall_time().
  int most(int64_t now) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return held_ || now >= retry_ + LONGEST ? NONE : limit_;
  }

  // Whether calls take all threads in any case.
  void hold(bool all) {
    const std::lock_guard<std::mutex> lock(mutex_);
    held_ = all;
  }

  // The threads of the next call, at least 1 and at most `size`.
  int of(int size, int64_t now) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (held_) return size;
    if (limit_ < size && !trying_ && now >= retry_) {
      ++limit_;
      begin(true);
    }
    wanted_ = std::max(wanted_, size);
    return std::min(size, limit_);
  }

  // From a call of `size` threads that has ended now.
  void learn(int size, const TeamTimes& times, int64_t now) {
    const std::lock_guard<std::mutex> lock(mutex_);
    // Another caller's threads were too many meanwhile, or this is not the team that is tried.
    if (size > limit_ || (trying_ && size < limit_)) return;
    largest_ = std::max(largest_, size);
    elapsed_ += times.elapsed;
    without_core_ += times.without_core;
    spare_ += (size - 1) * times.elapsed - times.running;
    if (elapsed_ < EVIDENCE) return;
    if (without_core_ > elapsed_ / 8 && spare_ > 0) {
      limit_ = std::max(1, largest_ - 1);
      pause_ = std::clamp(trying_ ? 2 * pause_ : pause_, SHORTEST, LONGEST);
      retry_ = now + pause_;
    } else if (trying_) {
      pause_ /= 2;
      retry_ = now;                          // one more at once
      if (limit_ >= wanted_) limit_ = NONE;  // no call asks for more
    }
    begin(false);
  }

 private:
  static constexpr int NONE = INT_MAX;
  static constexpr int64_t EVIDENCE = SECOND / 20, SHORTEST = SECOND, LONGEST = 8 * SECOND;

  void begin(bool trying) {
    trying_ = trying;
    elapsed_ = without_core_ = spare_ = 0;
    wanted_ = trying ? wanted_ : 0;
    largest_ = 0;
  }

  std::mutex mutex_;
  int limit_ = NONE;
  bool trying_ = false, held_ = false;
  // Since the last decision: of calls, times, the cores that a smaller team would have had to spare, and sizes.
  int64_t elapsed_ = 0, without_core_ = 0, spare_ = 0;
  int largest_ = 0, wanted_ = 0;
  int64_t pause_ = SHORTEST, retry_ = 0;
};

}  // namespace hmrnn
