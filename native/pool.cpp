#include "pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifndef _WIN32
#include <unistd.h>
#endif
#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#endif

namespace caffetools {
namespace {

// A short wait that keeps the core: giving it to the system costs a time slice where other work wants it.
inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

#ifdef __linux__
// Move this thread off processor `busy`, where the system wakes it next to the thread that woke it: there both would take turns until a
// balancing some milliseconds later. The set of allowed processors stays as it was.
void leave_processor(int busy) {
  cpu_set_t allowed, others;
  if (busy < 0 || sched_getcpu() != busy || pthread_getaffinity_np(pthread_self(), sizeof allowed, &allowed) != 0) return;
  others = allowed;
  CPU_CLR(busy, &others);
  if (CPU_COUNT(&others) == 0) return;
  if (pthread_setaffinity_np(pthread_self(), sizeof others, &others) == 0) pthread_setaffinity_np(pthread_self(), sizeof allowed, &allowed);
}
int this_processor() { return sched_getcpu(); }

// A worker that sleeps, kept off the processor of the thread that wakes it: the system may wake a thread where its waker runs (it does if the
// two processors share no cache, as those of virtual machines do), and there it waits for as long as the waker computes. It is kept off
// that of its last caller when it falls asleep; a caller that has moved since then says so before it wakes it. Guarded by the pool's mutex.
class Sleeper {
 public:
  void sleep(int busy) {
    thread_ = static_cast<pid_t>(syscall(SYS_gettid));
    moved_ = false;
    if (sched_getaffinity(thread_, sizeof allowed_, &allowed_) == 0) keep_off(busy);
  }
  // Called by the waker, on processor `busy`.
  void keep_off(int busy) {
    if (busy < 0 || busy == off_processor() || (moved_ && !unchanged())) return;
    cpu_set_t others = allowed_;
    CPU_CLR(busy, &others);
    if (CPU_COUNT(&others) == 0 || sched_setaffinity(thread_, sizeof others, &others) != 0) return;
    others_ = others;
    off_ = busy;
    moved_ = true;
  }
  void awake() {
    if (moved_ && unchanged()) sched_setaffinity(thread_, sizeof allowed_, &allowed_);
    moved_ = false;
  }

 private:
  int off_processor() const { return moved_ ? off_ : -1; }
  // Where somebody else has set the processors of this thread meanwhile, that holds.
  bool unchanged() const {
    cpu_set_t now;
    return sched_getaffinity(thread_, sizeof now, &now) == 0 && CPU_EQUAL(&now, &others_);
  }

  pid_t thread_ = 0;
  cpu_set_t allowed_, others_;
  int off_ = -1;
  bool moved_ = false;
};
#else
void leave_processor(int) {}
int this_processor() { return -1; }
struct Sleeper {
  void sleep(int) {}
  void keep_off(int) {}
  void awake() {}
};
#endif

// Parts for each thread: enough that one that begins late still gets an even share.
constexpr int64_t kPartsPerThread = 4;
// How long an idle thread looks for the next loop before it sleeps: more than the time between two operators of a net.
constexpr auto kPatience = std::chrono::microseconds(1000);
// How often the caller looks whether the others are done before it gives its core to the system.
constexpr int kTurns = 4000;
// Loops that run at the same time; further ones get no helpers.
constexpr int kSlots = 16;

// Loops on more threads are shared in as many stretches.
constexpr int kMostStretches = 64;

// A loop that is shared. Each thread has a stretch of it, which it takes part by part, and then helps with those of others. So a thread
// works on the same rows of a picture in one loop after the other, and finds there what it wrote itself, in its own cache.
struct Job {
  const LoopBody* body;
  int64_t count, part;
  int stretches;
  int processor;  // that the caller runs on
  std::atomic<int64_t> next[kMostStretches];

  Job(const LoopBody& loop, int64_t length, int threads)
      : body(&loop), count(length), stretches(static_cast<int>(std::min<int64_t>({threads, length, kMostStretches}))) {
    part = std::max<int64_t>(1, count / (static_cast<int64_t>(stretches) * kPartsPerThread));
    for (int i = 0; i < stretches; ++i) next[i].store(count * i / stretches, std::memory_order_relaxed);
  }

  void work(int first) {
    for (int i = 0; i < stretches; ++i) {
      const int stretch = (first + i) % stretches;
      const int64_t end = count * (stretch + 1) / stretches;
      for (int64_t begin; (begin = next[stretch].fetch_add(part, std::memory_order_relaxed)) < end;)
        (*body)(begin, std::min(end, begin + part));
    }
  }
};

// Where a job is found. A worker counts itself as a user before it reads the job, so the caller, whose stack holds the job, leaves
// only when the job is taken down and nobody uses the slot.
struct alignas(64) Slot {
  std::atomic<bool> taken{false};
  std::atomic<Job*> job{nullptr};
  std::atomic<int> users{0};
  std::atomic<int> wanted{0};  // helpers that the job still takes
};

class Pool {
 public:
  void run(int threads, int64_t count, const LoopBody& body) {
    Job job(body, count, threads);
    job.processor = this_processor();
    caller_.store(job.processor, std::memory_order_relaxed);
    Slot* slot = nullptr;
    for (Slot& candidate : slots_) {
      bool free = false;
      if (candidate.taken.compare_exchange_strong(free, true)) {
        slot = &candidate;
        break;
      }
    }
    if (slot == nullptr) {
      job.work(0);
      return;
    }
    add_workers(threads - 1);
    slot->job.store(&job);
    slot->wanted.store(job.stretches - 1);
    wake();
    job.work(0);
    slot->wanted.store(0);
    slot->job.store(nullptr);
    // What others have begun is nearly done: parts are small.
    for (int turn = 0; slot->users.load() > 0; ++turn) {
      if (turn < kTurns)
        relax();
      else
        std::this_thread::yield();
    }
    slot->taken.store(false);
  }

  void wake() {
    if (sleeping_.load() <= 0) return;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      const int mine = this_processor();
      caller_.store(mine, std::memory_order_relaxed);
      for (Sleeper* sleeper : asleep_) sleeper->keep_off(mine);
    }
    arrived_.notify_all();
  }

 private:
  void add_workers(int wanted) {
    if (workers_.load(std::memory_order_acquire) >= wanted) return;
    std::lock_guard<std::mutex> lock(mutex_);
    for (; workers_.load() < wanted; ++workers_) std::thread(&Pool::serve, this, workers_.load() + 1).detach();
  }

  // A worker; `number` counts from 1, the caller of a loop is 0.
  void serve(int number) {
    auto end = std::chrono::steady_clock::now() + kPatience;
    Sleeper sleeper;
    for (;;) {
      if (help(number)) {
        end = std::chrono::steady_clock::now() + kPatience;
        continue;
      }
      for (int turn = 0; turn < 4; ++turn) relax();
      if (std::chrono::steady_clock::now() < end) continue;
      std::unique_lock<std::mutex> lock(mutex_);
      sleeper.sleep(caller_.load(std::memory_order_relaxed));
      asleep_.push_back(&sleeper);
      ++sleeping_;
      // Looked at again after it says that it sleeps: a job that was put up meanwhile is seen here, or its caller sees the sleeper.
      if (!any()) arrived_.wait(lock);
      --sleeping_;
      asleep_.erase(std::find(asleep_.begin(), asleep_.end(), &sleeper));
      sleeper.awake();
      lock.unlock();
      end = std::chrono::steady_clock::now() + kPatience;
    }
  }

  bool any() const {
    return std::any_of(slots_, slots_ + kSlots, [](const Slot& slot) { return slot.wanted.load() > 0; });
  }

  // Take part in a loop that wants help; whether there was one.
  bool help(int number) {
    for (Slot& slot : slots_) {
      if (slot.wanted.load(std::memory_order_relaxed) <= 0) continue;
      slot.users.fetch_add(1);
      Job* job = slot.job.load();
      const bool joined = job != nullptr && slot.wanted.fetch_sub(1) > 0;
      if (joined) {
        leave_processor(job->processor);
        job->work(number);
      }
      slot.users.fetch_sub(1);
      if (joined) return true;
    }
    return false;
  }

  Slot slots_[kSlots];
  std::atomic<int> workers_{0}, sleeping_{0};
  std::atomic<int> caller_{-1};  // processor of the last caller
  std::mutex mutex_;
  std::vector<Sleeper*> asleep_;
  std::condition_variable arrived_;
};

// The pool of this process; a child that was forked has none of its parent's threads and gets a pool of its own. Pools are never
// destroyed: their threads wait until the process ends.
Pool& pool() {
  static std::mutex mutex;
  static Pool* current = nullptr;
#ifndef _WIN32
  static pid_t owner = 0;
  std::lock_guard<std::mutex> lock(mutex);
  if (owner != getpid()) current = nullptr, owner = getpid();
#else
  std::lock_guard<std::mutex> lock(mutex);
#endif
  if (current == nullptr) current = new Pool;
  return *current;
}

}  // namespace

void wake_threads() { pool().wake(); }

namespace {

thread_local bool on_openmp = false;

}  // namespace

void use_openmp(bool on) { on_openmp = on; }

void run_loop(int threads, int64_t count, const LoopBody& body) {
#ifdef _OPENMP
  if (on_openmp && !omp_in_parallel()) {
    Job job(body, count, threads);
    const int team = std::min(job.stretches, omp_get_max_threads());
#pragma omp parallel num_threads(team)
    job.work(omp_get_thread_num());
    return;
  }
#endif
  pool().run(threads, count, body);
}

}  // namespace caffetools
