// The same work in several orders of blocks, warps and lanes, as far as the device lets them be
// chosen (the emulated one; a real one has an order of its own each time): its
// bits must not change.
#pragma once
#include "support/device_test.h"
#include "support/setting.h"

namespace balora::test {

// The elements of all arrays, one after the other.
inline std::vector<double> values_of(const std::vector<Array>& arrays) {
  std::vector<double> out;
  for (const Array& array : arrays) {
    for (const double value : array->from_device()) out.push_back(value);
  }
  return out;
}

// `work` runs the rows anew, waits for them and returns what they wrote.
inline void check_orders(const std::function<std::vector<double>()>& work) {
  std::vector<double> first;
  for (const std::string order : {"", "reverse", "shuffle:3", "shuffle:77"}) {
    CAPTURE(order);
    const Setting setting("BALORA_EMULATOR_ORDER", order);
    const std::vector<double> now = work();
    if (first.empty()) first = now;
    CHECK(!now.empty());
    CHECK(now == first);
  }
}

}  // namespace balora::test
