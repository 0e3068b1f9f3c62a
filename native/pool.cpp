#include "pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <ctime>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifndef _WIN32
#include <dlfcn.h>
#include <unistd.h>
#endif

#include "processors.h"

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

// Nanoseconds.
int64_t wall_time() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Nanoseconds that this thread has computed; -1 where that is not known.
int64_t computing_time() {
#ifdef CLOCK_THREAD_CPUTIME_ID
  timespec time;
  if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time) == 0) return int64_t{1000000000} * time.tv_sec + time.tv_nsec;
#endif
  return -1;
}

// Parts for each thread: enough that one that begins late still gets an even share.
constexpr int64_t kPartsPerThread = 4;
// How long an idle thread looks for the next loop before it sleeps: more than the time between two operators of a net, or, where other
// programs compute too, little. There a thread that looks uses up its share of a processor, which it then lacks for its work, and a
// processor that does nothing takes over threads that wait for another one.
constexpr int64_t kPatience = 1000000, kPatienceInCrowd = 10000;
// How long a caller waits for parts that others have begun before it takes them to be put aside by the system: twice the time of a part of
// its own, within these bounds.
constexpr int64_t kLeastWait = 20000, kMostWait = 2000000;
// Loops that run at the same time; further ones get no helpers.
constexpr int kSlots = 16;

// Loops on more threads are shared in as many stretches.
constexpr int kMostStretches = 64;

// Whether other programs use this process's processors: a thread that computes was put aside for a while, twice in a short time.
class Crowd {
 public:
  // A thread of the pool has computed for `lost` nanoseconds less than it wanted to.
  void report(int64_t lost, int64_t now) {
    if (lost < kLeastLoss) return;
    if (now - last_.exchange(now, std::memory_order_relaxed) < kBetween) until_.store(now + kLasting, std::memory_order_relaxed);
  }
  bool is_there(int64_t now) const { return now < until_.load(std::memory_order_relaxed); }

 private:
  static constexpr int64_t kLeastLoss = 300000, kBetween = 30000000, kLasting = 60000000;
  std::atomic<int64_t> last_{-kBetween}, until_{0};
};

// What a thread has lost since the last look.
class Losses {
 public:
  void begin() { wall_ = wall_time(), computing_ = computing_time(); }
  // Nanoseconds from the last look to `now` in which this thread did not compute.
  int64_t until(int64_t now) {
    const int64_t computing = computing_time(), lost = computing < 0 ? 0 : now - wall_ - (computing - computing_);
    wall_ = now, computing_ = computing;
    return lost;
  }

 private:
  int64_t wall_ = 0, computing_ = 0;
};

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

  // Returns the number of parts that were left for this thread.
  int work(int first) {
    int parts = 0;
    for (int i = 0; i < stretches; ++i) {
      const int stretch = (first + i) % stretches;
      const int64_t end = count * (stretch + 1) / stretches;
      for (int64_t begin; (begin = next[stretch].fetch_add(part, std::memory_order_relaxed)) < end; ++parts)
        (*body)(begin, std::min(end, begin + part));
    }
    return parts;
  }
};

// Where a job is found. A worker counts itself as a user before it reads the job, so the caller, whose stack holds the job, leaves
// only when the job is taken down and nobody uses the slot.
struct alignas(64) Slot {
  std::atomic<bool> taken{false};
  std::atomic<Job*> job{nullptr};
  std::atomic<int> users{0};
  std::atomic<int> wanted{0};  // helpers that the job still takes
  std::atomic<bool> waiting{false};  // its caller sleeps until nobody uses the slot
  std::mutex mutex;
  std::condition_variable left;
};

struct Worker {
  explicit Worker(int n) : number(n) {}
  const int number;  // counts from 1, the caller of a loop is 0
  std::atomic<ThreadId> thread{0};
  std::atomic<Slot*> at{nullptr};
};

class Pool {
 public:
  void run(int threads, int64_t count, const LoopBody& body) {
    Job job(body, count, threads);
    job.processor = this_processor();
    caller_.store(job.processor, std::memory_order_relaxed);
    Slot* const slot = free_slot();
    if (slot == nullptr) {
      job.work(0);
      return;
    }
    add_workers(threads - 1);
    slot->job.store(&job);
    slot->wanted.store(job.stretches - 1);
    wake();
    // A call of the system each, so a caller looks in some of its loops.
    static thread_local unsigned loops = 0;
    const bool looks = ++loops % 8 == 0;
    Losses losses;
    if (looks) losses.begin();
    const int64_t begin = wall_time();
    const int parts = job.work(0);
    slot->wanted.store(0);
    slot->job.store(nullptr);
    const int64_t end = wall_time();
    if (looks) crowd_.report(losses.until(end), end);
    wait(*slot, end + std::clamp(2 * (end - begin) / std::max(parts, 1), kLeastWait, kMostWait));
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
  Slot* free_slot() {
    for (Slot& slot : slots_) {
      bool taken = false;
      if (slot.taken.compare_exchange_strong(taken, true)) return &slot;
    }
    return nullptr;
  }

  void add_workers(int wanted) {
    if (count_.load(std::memory_order_acquire) >= wanted) return;
    std::lock_guard<std::mutex> lock(mutex_);
    while (count_.load() < wanted) {
      workers_.push_back(std::make_unique<Worker>(count_.load() + 1));
      std::thread(&Pool::serve, this, workers_.back().get()).detach();
      ++count_;
    }
  }

  // Wait for the parts that others have begun. From `patience` on (wall_time), the system has put one of them aside, so it gets the
  // processor of this thread, which sleeps until then.
  void wait(Slot& slot, int64_t patience) {
    for (int turn = 0; slot.users.load() > 0; ++turn) {
      relax();
      if (turn % 16 != 15 || wall_time() < patience) continue;
      slot.waiting.store(true);
      {
        std::lock_guard<std::mutex> lock(mutex_);
        for (const auto& worker : workers_)
          if (worker->at.load() == &slot) bring_here(worker->thread.load());
      }
      std::unique_lock<std::mutex> lock(slot.mutex);
      slot.left.wait(lock, [&] { return slot.users.load() == 0; });
      slot.waiting.store(false);
    }
  }

  void serve(Worker* self) {
    self->thread.store(this_thread());
    Sleeper sleeper;
    Losses losses;
    losses.begin();
    int64_t end = wall_time() + kPatience;
    for (;;) {
      if (help(*self)) {
        const int64_t now = wall_time();
        crowd_.report(losses.until(now), now);
        end = now + (crowd_.is_there(now) ? kPatienceInCrowd : kPatience);
        continue;
      }
      for (int turn = 0; turn < 4; ++turn) relax();
      if (wall_time() < end) continue;
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
      losses.begin();
      end = wall_time() + kPatience;
    }
  }

  bool any() const {
    return std::any_of(slots_, slots_ + kSlots, [](const Slot& slot) { return slot.wanted.load() > 0; });
  }

  // Take part in a loop that wants help; whether there was one.
  bool help(Worker& self) {
    for (Slot& slot : slots_) {
      if (slot.wanted.load(std::memory_order_relaxed) <= 0) continue;
      self.at.store(&slot);
      slot.users.fetch_add(1);
      Job* job = slot.job.load();
      const bool joined = job != nullptr && slot.wanted.fetch_sub(1) > 0;
      if (joined) {
        leave_processor(job->processor);
        job->work(self.number);
      }
      self.at.store(nullptr);
      if (slot.users.fetch_sub(1) == 1 && slot.waiting.load()) {
        std::lock_guard<std::mutex> lock(slot.mutex);
        slot.left.notify_all();
      }
      if (joined) return true;
    }
    return false;
  }

  Slot slots_[kSlots];
  Crowd crowd_;
  std::atomic<int> count_{0}, sleeping_{0};
  std::atomic<int> caller_{-1};  // processor of the last caller
  std::mutex mutex_;
  std::vector<std::unique_ptr<Worker>> workers_;
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

// A function of the OpenMP runtime that torch has loaded; null where there is none.
template <typename Function>
Function openmp_function(const char* name) {
#ifdef _WIN32
  return nullptr;
#else
  return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
#endif
}

}  // namespace

void use_openmp(bool on) { on_openmp = on; }

bool limit_openmp(int threads) {
  static const auto set = openmp_function<void (*)(int)>("omp_set_num_threads");
  static const auto pause = openmp_function<int (*)(int kind, int device)>("omp_pause_resource");
  static const auto device = openmp_function<int (*)()>("omp_get_initial_device");
  if (set == nullptr || pause == nullptr || device == nullptr) return false;
  constexpr int kSoft = 1;
  pause(kSoft, device());
  set(threads);
  return true;
}

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
