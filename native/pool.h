// Loops shared among threads, without a barrier: the caller does whatever no other thread has begun, so that a thread that the system
// has put aside (on a machine with other work) delays nobody. OpenMP's loops wait for every thread of the team.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace caffetools {

// A loop's body: iterations [begin, end).
class LoopBody {
 public:
  virtual void operator()(int64_t begin, int64_t end) const = 0;

 protected:
  ~LoopBody() = default;
};

// Wake the threads that sleep, for loops that follow within a millisecond.
void wake_threads();

// Whether the loops that this thread begins run on OpenMP's threads, as those of torch do. Between two loops of one kind its threads look
// for work for about a millisecond, on the cores that threads of the other kind then lack.
void use_openmp(bool on);

// Let OpenMP's loops that this thread begins, those of torch's operators, run on `threads` threads from now on; threads that it has made
// for this one before end. Returns whether the runtime can do both.
bool limit_openmp(int threads);

void run_loop(int threads, int64_t count, const LoopBody& body);

// Calls body(begin, end) for parts of [0, count) on up to `threads` threads, this one included. Several threads may do so at once.
template <typename Body>
void parallel_for(int threads, int64_t count, const Body& body) {
  class Loop final : public LoopBody {
   public:
    explicit Loop(const Body& b) : body_(b) {}
    void operator()(int64_t begin, int64_t end) const override { body_(begin, end); }

   private:
    const Body& body_;
  };
  if (threads <= 1 || count <= 1) {
    if (count > 0) body(int64_t{0}, count);
    return;
  }
  run_loop(threads, count, Loop(body));
}

// Places of memory for the threads of one loop, as many as there are threads.
class LaneSet {
 public:
  explicit LaneSet(int count) : busy_(static_cast<std::size_t>(count)) {}

 private:
  friend class Lane;
  std::vector<std::atomic<bool>> busy_;
};

// The last one of each thread, which finds there what it has in its cache.
inline thread_local std::size_t last_lane = 0;

// One of them, as long as this object lives.
class Lane {
 public:
  explicit Lane(LaneSet& lanes) : lanes_(lanes), number_(last_lane % lanes.busy_.size()) {
    for (bool free = false; !lanes_.busy_[number_].compare_exchange_strong(free, true); free = false)
      number_ = (number_ + 1) % lanes_.busy_.size();
    last_lane = number_;
  }
  ~Lane() { lanes_.busy_[number_].store(false); }
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;
  int64_t number() const { return static_cast<int64_t>(number_); }

 private:
  LaneSet& lanes_;
  std::size_t number_;
};

}  // namespace caffetools
