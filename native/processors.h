// Where threads run: the system's choice is corrected where it lets a thread wait behind another one of the same loop. Linux alone.
#pragma once

#ifdef __linux__
#include <sched.h>
#include <sys/types.h>
#endif

namespace caffetools {

// The processor that this thread runs on; -1 where that is not known.
int this_processor();

// Move this thread off processor `busy`, where the system wakes it next to the thread that woke it: there both would take turns until a
// balancing some milliseconds later. The set of allowed processors stays as it was.
void leave_processor(int busy);

#ifdef __linux__
using ThreadId = pid_t;
#else
using ThreadId = int;
#endif

// What the system calls this thread; 0 where that is not known.
ThreadId this_thread();

// Let `thread`, which waits for a processor that other programs use, go on at this thread's. Its set of allowed processors stays as it was.
void bring_here(ThreadId thread);

// A thread that sleeps, kept off the processor of the thread that wakes it: the system may wake a thread where its waker runs (it does if the
// two processors share no cache, as those of virtual machines do), and there it waits for as long as the waker computes. It is kept off
// that of its last caller when it falls asleep; a caller that has moved since then says so before it wakes it. Calls are guarded by a mutex.
class Sleeper {
 public:
  // Called by the thread that falls asleep.
  void sleep(int busy);
  // Called by the waker, on processor `busy`.
  void keep_off(int busy);
  // Called by the thread that has slept.
  void awake();

#ifdef __linux__
 private:
  bool unchanged() const;

  ThreadId thread_ = 0;
  cpu_set_t allowed_, others_;
  int off_ = -1;
  bool moved_ = false;
#endif
};

}  // namespace caffetools
