// A pool of helpers for which the calling thread never waits in vain.
//
// A region of OpenMP ends when every thread of the team has come to its barrier. Where another process holds a core,
// one of them has not even started, and the rest spin until the scheduler lets it, some milliseconds, region after
// region: beside one busy process loops of small regions took 50 to 140 times as long. Here a share belongs to whoever
// claims it first. The caller takes those that no helper has come for, and waits only for shares that were begun. Who
// waits yields its core to whoever wants it, and soon sleeps, for a sleeper is put on a free core and a spinner keeps
// its place in the queue. What a share computes does not depend on who does it.
#include "cpu/threads.hpp"

#include <dlfcn.h>
#include <omp.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

namespace pyrecon {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::microseconds awake{100};     // a helper waits so long for the next region before it sleeps
constexpr std::chrono::microseconds expecting{50};  // and the caller for the last share
constexpr std::chrono::microseconds stalled{500};   // who waits so much longer than it worked waits for a time slice
constexpr std::chrono::milliseconds first_rest{8}, longest_rest{1000};
constexpr int most_slots = 1024;
constexpr int most_patience = 6;  // wakes at least one region in 2^6

thread_local bool in_share = false;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Whether ready() comes true in time. Two microseconds at full attention, then the core is anybody's.
template <class Ready>
bool watch(std::chrono::microseconds time, const Ready& ready) {
  for (int i = 0; i < 64; ++i, relax())
    if (ready()) return true;
  const auto end = Clock::now() + time;
  do {
    if (ready()) return true;
    sched_yield();
  } while (Clock::now() < end);
  return ready();
}

class Pool {
 public:
  // False if another thread has the helpers, or they rest.
  bool run(int shares, void (*share)(const void*, int), const void* body) {
    if (used_.exchange(true, std::memory_order_acquire)) return false;
    const auto begun = Clock::now();
    if (begun < rested_) return used_.store(false, std::memory_order_release), false;
    const int slots = std::min(shares, most_slots);
    start_helpers(slots - 1);
    const uint64_t region = region_.load(std::memory_order_relaxed) + 1;
    share_ = share, body_ = body, shares_ = shares;
    slots_.store(slots, std::memory_order_relaxed);
    finished_.store(0, std::memory_order_relaxed);
    for (int s = 0; s < slots; ++s) slot_[s].store(2 * region, std::memory_order_relaxed);
    region_.store(region);  // sequentially consistent, as the count of sleepers: one of both sees the other
    const int asleep = sleepers_.load();
    const bool calls = asleep > 0 && (region & ((uint64_t{1} << patience_) - 1)) == 0;
    if (calls) wake(std::min(asleep, slots - 1));

    const int own = work(region, 0);
    if (own == slots)  // nobody came in time: beside busy processes a call is not worth its microseconds
      patience_ = calls ? std::min(patience_ + 1, most_patience) : patience_;
    else
      patience_ = 0;
    if (finished_.fetch_add(own, std::memory_order_acq_rel) + own < slots) {
      const auto worked = Clock::now();
      const auto done = [&] { return finished_.load(std::memory_order_acquire) == slots; };
      if (!watch(expecting, done)) {
        std::unique_lock<std::mutex> lock(mutex_);
        caller_sleeps_.store(true);
        all_done_.wait(lock, [&] { return finished_.load() == slots; });
        caller_sleeps_.store(false);
      }
      judge(worked - begun, Clock::now() - worked);
    }
    helped_.fetch_add(slots - own, std::memory_order_relaxed);
    used_.store(false, std::memory_order_release);
    return true;
  }

  Helpers helpers() const { return {started_.load(), helped_.load()}; }
  void hold(bool held) { held_.store(held); }
  void delay(int microseconds) { delay_.store(microseconds); }

 private:
  // A helper that lost its core in the middle of a share is no help. None is asked for a while, twice as long each
  // time; half as long once all went well for that while. Beside one busy process a core a small TV prox took 15 times
  // what one thread takes, without.
  void judge(Clock::duration worked, Clock::duration waited) {
    const auto now = Clock::now();
    if (waited > 2 * worked + stalled) {
      rest_ = std::clamp<Clock::duration>(2 * rest_, first_rest, longest_rest);
      rested_ = now + rest_;
    } else if (now - rested_ > rest_) {
      rest_ /= 2;
      rested_ = now;
    }
  }

  void start_helpers(int wanted) {
    for (; started_.load(std::memory_order_relaxed) < wanted; ++started_) try {
        std::thread(&Pool::help, this, started_ + 1).detach();
      } catch (const std::system_error&) {
        return;  // the process may have no more threads: the shares are done by those there are
      }
  }

  void wake(int count) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
    }
    for (int i = 0; i < count; ++i) work_came_.notify_one();
  }

  // Claims and does what is left of a region, `first` to begin with, so that a share meets the cache of its last time.
  int work(uint64_t region, int first) {
    const int slots = slots_.load(std::memory_order_relaxed);
    int done = 0;
    in_share = true;
    for (int i = 0; i < slots; ++i) {
      const int s = (first + i) % slots;
      uint64_t waiting = 2 * region;  // 2 region + 1 once claimed; who comes late finds the number of a later region
      if (slot_[s].load(std::memory_order_relaxed) != waiting ||
          !slot_[s].compare_exchange_strong(waiting, waiting + 1, std::memory_order_acquire))
        continue;
      if (const int late = first > 0 ? delay_.load(std::memory_order_relaxed) : 0)
        std::this_thread::sleep_for(std::chrono::microseconds(late));
      for (int k = s; k < shares_; k += most_slots) share_(body_, k);
      ++done;
      if (first > 0 && finished_.fetch_add(1) + 1 == slots && caller_sleeps_.load()) {
        const std::lock_guard<std::mutex> lock(mutex_);
        all_done_.notify_one();
      }
    }
    in_share = false;
    return done;
  }

  [[noreturn]] void help(int index) {
    for (uint64_t seen = 0;;) {
      const auto came = [&] { return region_.load() != seen; };
      if (!watch(awake, came)) {
        std::unique_lock<std::mutex> lock(mutex_);
        ++sleepers_;
        work_came_.wait(lock, came);
        --sleepers_;
      }
      seen = region_.load();
      if (!held_.load(std::memory_order_relaxed)) work(seen, index);
    }
  }

  // The region at hand; written by the caller alone, before its number.
  void (*share_)(const void*, int) = nullptr;
  const void* body_ = nullptr;
  int shares_ = 0;
  std::atomic<int> slots_{0};
  int patience_ = 0;
  Clock::duration rest_{0};
  Clock::time_point rested_{};  // when the last rest ended or ends, or all had gone well for as long
  std::atomic<int> delay_{0};
  std::atomic<bool> used_{false}, held_{false};
  std::atomic<int> started_{0};
  std::atomic<uint64_t> helped_{0};

  alignas(64) std::atomic<uint64_t> region_{0};
  std::atomic<int> sleepers_{0};
  alignas(64) std::atomic<int> finished_{0};
  std::atomic<bool> caller_sleeps_{false};
  std::mutex mutex_;
  std::condition_variable work_came_, all_done_;
  alignas(64) std::atomic<uint64_t> slot_[most_slots]{};
};

// Never destroyed: helpers may look at it until the process is gone. A forked child has no helpers and makes its own.
std::atomic<Pool*> the_pool{nullptr};

Pool& pool() {
  Pool* found = the_pool.load(std::memory_order_acquire);
  if (found != nullptr) return *found;
  Pool* made = new Pool;
  if (the_pool.compare_exchange_strong(found, made)) return *made;
  delete made;
  return *found;
}

[[maybe_unused]] const int forgets =
    pthread_atfork(nullptr, nullptr, [] { the_pool.store(nullptr), in_share = false; });

}  // namespace

void run_shares(int shares, void (*share)(const void* body, int s), const void* body) noexcept {
  if (shares > 1 && !in_share && pool().run(shares, share, body)) return;
  for (int s = 0; s < shares; ++s) share(body, s);
}

Helpers helpers() noexcept { return pool().helpers(); }
void hold_helpers(bool held) noexcept { pool().hold(held); }
void delay_helpers(int microseconds) noexcept { pool().delay(microseconds); }

Limit limit_threads(Limit limit) noexcept {
  // torch.set_num_threads is also what threads yet to come begin with; these two belong to the calling thread.
  using SetLocal = int (*)(int);
  static const auto set_mkl = [] {  // in torch's own library where it was built with MKL, else nowhere
    void* torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
    return torch != nullptr ? reinterpret_cast<SetLocal>(dlsym(torch, "MKL_Set_Num_Threads_Local")) : nullptr;
  }();
  const Limit before{omp_get_max_threads(), set_mkl != nullptr ? set_mkl(limit.mkl) : 0};
  omp_set_num_threads(limit.openmp);
  return before;
}

}  // namespace pyrecon
