// Seconds and calls of the ops that have run, by phase (a name that the enqueueing thread sets),
// op and implementation. Written by the engine thread, read by any; exact at a sync.
#pragma once
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

namespace balora {

struct OpTime {
  std::string phase;
  std::string op;
  std::string implementation;  // empty where the op has but one
  int64_t calls = 0;
  double seconds = 0;
};

class OpTimes {
 public:
  OpTimes() : phases_{""} {}

  int phase(const std::string& name);  // the number of a phase, new or known; 0 is the unnamed one
  // Null: the op has but one implementation.
  void add(int phase, const char* op, const char* implementation, double seconds);
  std::vector<OpTime> read() const;
  void reset();

 private:
  struct Total {
    int64_t calls = 0;
    double seconds = 0;
  };
  mutable std::mutex mutex_;
  std::vector<std::string> phases_;
  std::map<std::tuple<int, std::string_view, std::string_view>, Total> totals_;
};

}  // namespace balora
