// A stack of its own to run a function on, switched by hand.
#pragma once
#include <cstddef>

namespace emulator {

class Fibre {
 public:
  Fibre();
  ~Fibre();
  Fibre(const Fibre&) = delete;
  Fibre& operator=(const Fibre&) = delete;

  // Prepares entry(argument) to start at the next resume(). entry never returns: it calls leave()
  // for good at its end.
  void start(void (*entry)(void*), void* argument);
  void resume();  // from the scheduler: runs until the fibre calls leave()
  void leave();   // from the fibre: back to the scheduler

  bool holds(const void* address) const {
    return address >= stack_ && address < stack_ + kStackBytes;
  }

 private:
  static constexpr size_t kStackBytes = size_t{128} << 10;
  char* stack_;
  void* inside_ = nullptr;   // stack pointer of the fibre while it waits
  void* outside_ = nullptr;  // of the scheduler while the fibre runs
};

}  // namespace emulator
