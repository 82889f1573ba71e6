// Scratch that kernels borrow: what two hold at a time never overlaps, and what they give back is
// used again.
#include "kernels/cpu/runtime/scratch.h"

#include <cstring>

#include "support/kernel_test.h"

namespace balora::test {

TEST_CASE("scratch: two holders never have the same memory, however they nest") {
  TestContext ctx;
  const Scratch<char> outer(ctx, 1000);
  std::memset(outer.data(), 1, 1000);
  {
    const Scratch<char> inner(ctx, 1000), larger(ctx, 1 << 20);
    CHECK(inner.data() != outer.data());
    std::memset(inner.data(), 2, 1000);
    std::memset(larger.data(), 3, 1 << 20);
  }
  const Scratch<char> later(ctx, 2000);
  std::memset(later.data(), 4, 2000);
  for (int i = 0; i < 1000; ++i) REQUIRE(outer.data()[i] == 1);
  CHECK(Scratch<float>(ctx, 0).data() == nullptr);
}

TEST_CASE("scratch: what was given back is lent again, a large block not to a small request") {
  TestContext ctx;
  constexpr int64_t kLarge = 8 << 20;
  const auto place = [&](int64_t bytes) { return Scratch<char>(ctx, bytes).data(); };
  char* const large = place(kLarge);
  CHECK(place(kLarge) == large);
  CHECK(place(kLarge / 2) == large);
  const Scratch<char> small(ctx, 100);
  CHECK(small.data() != large);
  CHECK(place(kLarge) == large);
  for (const int64_t bytes : {1, 63, 4096, 100'000}) {
    CHECK(reinterpret_cast<uintptr_t>(place(bytes)) % 64 == 0);
  }
}

TEST_CASE("scratch: a request that fails leaves the pool as it was") {
  TestContext ctx;
  const Scratch<char> held(ctx, 1000);
  std::memset(held.data(), 5, 1000);
  CHECK_THROWS_AS(Scratch<char>(ctx, int64_t{1} << 60), std::bad_alloc);
  const Scratch<char> next(ctx, 1000);
  CHECK(next.data() != held.data());
  for (int i = 0; i < 1000; ++i) REQUIRE(held.data()[i] == 5);
}

}  // namespace balora::test
