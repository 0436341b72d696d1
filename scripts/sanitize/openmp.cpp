// OpenMP's regions on plain threads, for the thread sanitizer. It cannot see into libgomp, whose way of handing work to
// threads and of waiting for them would look like races; it does see how std::thread and std::mutex order what is done.
// Only what g++ calls for the constructs in use; compiled into the extension with hidden visibility, so that the rest of
// the process keeps its own OpenMP.
#include <ATen/Parallel.h>

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace {

struct Team {
  explicit Team(unsigned threads) : size(threads) {}
  const unsigned size;
  std::mutex mutex;
  std::condition_variable all_there;
  unsigned arrived = 0, phase = 0, singles = 0;
};

struct Member {
  Team* team = nullptr;
  int number = 0;
  unsigned singles = 0;
};

thread_local Member me;
std::mutex critical;

}  // namespace

extern "C" {

void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
  Team team(threads ? threads : unsigned(at::get_num_threads()));
  const Member outside = me;
  const auto work = [&](int number) {
    me = {&team, number, 0};
    body(data);
  };
  std::vector<std::thread> others;
  for (unsigned number = 1; number < team.size; ++number) others.emplace_back(work, int(number));
  work(0);
  for (std::thread& other : others) other.join();
  me = outside;
}

void GOMP_barrier() {
  Team& team = *me.team;
  std::unique_lock<std::mutex> lock(team.mutex);
  const unsigned phase = team.phase;
  if (++team.arrived == team.size) {
    team.arrived = 0;
    ++team.phase;
    team.all_there.notify_all();
  }
  team.all_there.wait(lock, [&] { return team.phase != phase; });
}

bool GOMP_single_start() {
  const std::lock_guard<std::mutex> lock(me.team->mutex);
  if (me.singles++ != me.team->singles) return false;
  ++me.team->singles;
  return true;
}

void GOMP_critical_name_start(void**) { critical.lock(); }
void GOMP_critical_name_end(void**) { critical.unlock(); }
int omp_get_thread_num() { return me.number; }
int omp_get_num_threads() { return me.team ? int(me.team->size) : 1; }
int omp_in_parallel() { return me.team != nullptr; }

}  // extern "C"
