// A linear whose rows must not depend on each other, for the tests of that on each device.
#pragma once
#include <cstdint>

namespace balora::test {

struct LinearRowsCase {
  int64_t rows, in, outs;
  int64_t rank = 0;  // 0: no low-rank part
  bool scaled = false;
};

}  // namespace balora::test
