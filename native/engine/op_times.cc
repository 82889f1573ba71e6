#include "engine/op_times.h"

#include <algorithm>

namespace balora {

int OpTimes::phase(const std::string& name) {
  std::lock_guard lock(mutex_);
  const auto known = std::find(phases_.begin(), phases_.end(), name);
  if (known == phases_.end()) phases_.push_back(name);
  return static_cast<int>(std::find(phases_.begin(), phases_.end(), name) - phases_.begin());
}

// Names of ops outlive the engine: literals, or interned by their environment (launch.h).
void OpTimes::add(int phase, const char* op, const char* implementation, double seconds) {
  std::lock_guard lock(mutex_);
  Total& total = totals_[{phase, op, implementation ? implementation : ""}];
  ++total.calls;
  total.seconds += seconds;
}

std::vector<OpTime> OpTimes::read() const {
  std::lock_guard lock(mutex_);
  std::vector<OpTime> list;
  for (const auto& [key, total] : totals_) {
    const auto& [phase, op, implementation] = key;
    list.push_back({phases_[static_cast<size_t>(phase)], std::string(op),
                    std::string(implementation), total.calls, total.seconds});
  }
  return list;
}

void OpTimes::reset() {
  std::lock_guard lock(mutex_);
  totals_.clear();
}

}  // namespace balora
