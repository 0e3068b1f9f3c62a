#include "pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <list>
#include <mutex>
#include <thread>
#include <vector>
#ifndef _WIN32
#include <unistd.h>
#endif

namespace caffetools {
namespace {

// Parts for each thread: enough that one that begins late still gets an even share.
constexpr int64_t kPartsPerThread = 4;
// How long an idle thread looks for the next loop before it sleeps: about the time between two operators of a net.
constexpr auto kPatience = std::chrono::microseconds(50);

struct Job {
  const LoopBody* body;
  int64_t count, part;
  int helpers_wanted;           // guarded by the pool's mutex
  std::atomic<int64_t> next{0};
  std::atomic<int> helpers{0};  // threads other than the caller that are in work()

  void work() {
    for (;;) {
      const int64_t begin = next.fetch_add(part, std::memory_order_relaxed);
      if (begin >= count) return;
      (*body)(begin, std::min(count, begin + part));
    }
  }
};

class Pool {
 public:
  void run(int threads, int64_t count, const LoopBody& body) {
    Job job;
    job.body = &body;
    job.count = count;
    job.part = std::max<int64_t>(1, count / (threads * kPartsPerThread));
    job.helpers_wanted = static_cast<int>(std::min<int64_t>(threads, (count + job.part - 1) / job.part)) - 1;
    std::list<Job*>::iterator place;
    bool wake;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (static_cast<int>(workers_.size()) < threads - 1) workers_.emplace_back(&Pool::serve, this).detach();
      place = jobs_.insert(jobs_.end(), &job);
      waiting_.fetch_add(1, std::memory_order_release);
      wake = sleeping_ > 0;
    }
    if (wake) arrived_.notify_all();
    job.work();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      jobs_.erase(place);
      waiting_.fetch_sub(1, std::memory_order_release);
    }
    // What others have begun is nearly done: parts are small.
    while (job.helpers.load(std::memory_order_acquire) > 0) std::this_thread::yield();
  }

 private:
  void serve() {
    for (;;) {
      Job* job = nullptr;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        while ((job = take()) == nullptr) {
          if (!look(lock)) {
            ++sleeping_;
            arrived_.wait(lock);
            --sleeping_;
          }
        }
      }
      job->work();
      job->helpers.fetch_sub(1, std::memory_order_release);
    }
  }

  // A job that wants a helper and still has parts; needs the mutex.
  Job* take() {
    for (Job* job : jobs_) {
      if (job->helpers_wanted > 0 && job->next.load(std::memory_order_relaxed) < job->count) {
        --job->helpers_wanted;
        job->helpers.fetch_add(1, std::memory_order_relaxed);
        return job;
      }
    }
    return nullptr;
  }

  // Wait a little for a job without sleeping; whether one may have come.
  bool look(std::unique_lock<std::mutex>& lock) {
    lock.unlock();
    const auto end = std::chrono::steady_clock::now() + kPatience;
    bool found = false;
    do {
      found = waiting_.load(std::memory_order_acquire) > 0;
      std::this_thread::yield();
    } while (!found && std::chrono::steady_clock::now() < end);
    lock.lock();
    return found && std::any_of(jobs_.begin(), jobs_.end(), [](const Job* job) { return job->helpers_wanted > 0; });
  }

  std::mutex mutex_;
  std::condition_variable arrived_;
  std::list<Job*> jobs_;
  std::vector<std::thread> workers_;
  std::atomic<int> waiting_{0};
  int sleeping_ = 0;
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

void run_loop(int threads, int64_t count, const LoopBody& body) { pool().run(threads, count, body); }

}  // namespace caffetools
