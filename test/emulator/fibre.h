// A stack of its own to run a function on, switched by hand.
#pragma once
#include <cstddef>

namespace emulator {

class Fibre {
 public:
  static constexpr size_t kStackBytes = size_t{128} << 10;

  Fibre();
  ~Fibre();
  Fibre(const Fibre&) = delete;
  Fibre& operator=(const Fibre&) = delete;

  // Prepares entry() to start at the next resume(), `skew` bytes (a multiple of 16, below a page)
  // further down its stack, so that the stacks of a block do not meet in the same lines of a cache.
  // entry never returns: it calls leave() for good at its end. What ran before is forgotten.
  void start(void (*entry)(), size_t skew);
  void resume();  // from the scheduler: runs until the fibre calls leave()
  void leave();   // from the fibre: back to the scheduler

  const char* stack() const { return stack_; }

 private:
  char* stack_;
  void* inside_ = nullptr;   // stack pointer of the fibre while it waits
  void* outside_ = nullptr;  // of the scheduler while the fibre runs
};

}  // namespace emulator
