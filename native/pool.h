// Loops shared among threads, without a barrier: the caller does whatever no other thread has begun, so that a thread that the system
// has put aside (on a machine with other work) delays nobody. OpenMP's loops wait for every thread of the team.
#pragma once

#include <cstdint>

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

}  // namespace caffetools
