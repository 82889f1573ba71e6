// Entry of the C++ tests. They link the core without Node, which keeps the core free of it.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include "io/fixtures.h"

namespace balora::io::test {

const char* repository_root() {
  return BALORA_ROOT;
}

}  // namespace balora::io::test
