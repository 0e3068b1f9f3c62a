#include "processors.h"

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace caffetools {

#ifdef __linux__

namespace {

// Move a thread (0: this one) to one of `to`, and leave it its set of allowed processors.
void move(ThreadId thread, const cpu_set_t& allowed, const cpu_set_t& to) {
  if (CPU_COUNT(&to) > 0 && sched_setaffinity(thread, sizeof to, &to) == 0) sched_setaffinity(thread, sizeof allowed, &allowed);
}

}  // namespace

int this_processor() { return sched_getcpu(); }

ThreadId this_thread() {
  static thread_local const ThreadId thread = static_cast<ThreadId>(syscall(SYS_gettid));
  return thread;
}

void leave_processor(int busy) {
  cpu_set_t allowed;
  if (busy < 0 || sched_getcpu() != busy || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  cpu_set_t others = allowed;
  CPU_CLR(busy, &others);
  move(0, allowed, others);
}

void bring_here(ThreadId thread) {
  const int here = sched_getcpu();
  cpu_set_t allowed, one;
  if (here < 0 || thread == 0 || sched_getaffinity(thread, sizeof allowed, &allowed) != 0 || !CPU_ISSET(here, &allowed)) return;
  CPU_ZERO(&one);
  CPU_SET(here, &one);
  move(thread, allowed, one);
}

void Sleeper::sleep(int busy) {
  thread_ = this_thread();
  moved_ = false;
  if (sched_getaffinity(thread_, sizeof allowed_, &allowed_) == 0) keep_off(busy);
}

void Sleeper::keep_off(int busy) {
  if (busy < 0 || (moved_ && (busy == off_ || !unchanged()))) return;
  cpu_set_t others = allowed_;
  CPU_CLR(busy, &others);
  if (CPU_COUNT(&others) == 0 || sched_setaffinity(thread_, sizeof others, &others) != 0) return;
  others_ = others;
  off_ = busy;
  moved_ = true;
}

void Sleeper::awake() {
  if (moved_ && unchanged()) sched_setaffinity(thread_, sizeof allowed_, &allowed_);
  moved_ = false;
}

// Where somebody else has set the processors of this thread meanwhile, that holds.
bool Sleeper::unchanged() const {
  cpu_set_t now;
  return sched_getaffinity(thread_, sizeof now, &now) == 0 && CPU_EQUAL(&now, &others_);
}

#else

int this_processor() { return -1; }
ThreadId this_thread() { return 0; }
void leave_processor(int) {}
void bring_here(ThreadId) {}
void Sleeper::sleep(int) {}
void Sleeper::keep_off(int) {}
void Sleeper::awake() {}

#endif

}  // namespace caffetools
