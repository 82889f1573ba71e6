// Entry of the C++ tests. They link the core without Node, which keeps the core free of it.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include "io/fixtures.h"
#include "support/choices.h"

namespace balora::io::test {

const char* repository_root() {
  return BALORA_ROOT;
}

}  // namespace balora::io::test

int main(int argc, char** argv) {
  doctest::Context context(argc, argv);
  const balora::test::Choices choices;
  return context.run();
}
