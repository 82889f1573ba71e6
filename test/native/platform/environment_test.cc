// The variables of the environment that the engine knows. Taking them over is once a process, so it
// is tested from JavaScript (test/lifetime/environment.test.ts).
#include "platform/environment.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <string>

TEST_CASE("environment: the variables that are listed, and no others") {
  unsetenv("BALORA_CUDA_LINEAR");
  CHECK(balora::variable("BALORA_CUDA_LINEAR") == nullptr);
  setenv("BALORA_CUDA_LINEAR", "own", 1);
  CHECK(std::string(balora::variable("BALORA_CUDA_LINEAR")) == "own");
  unsetenv("BALORA_CUDA_LINEAR");
  REQUIRE(std::getenv("PATH") != nullptr);
  CHECK(balora::variable("PATH") == nullptr);  // not of the engine's
}
