// Products with a frozen f32 weight share oneDNN's primitives over all numbers of rows: they are
// made for multiples of 64 and for what is left, so that batches of all lengths cost a bounded
// number of them.
#include "kernels/cpu/products/packed_weight.h"

#include <doctest/doctest.h>

#include "kernels/cpu/products/onednn.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "support/kernel_test.h"

namespace balora::test {
namespace {

constexpr int64_t kIn = 24, kOut = 40, kMostRows = 512, kBucket = 64;

struct Frozen {
  std::mt19937 random;
  Array<float> weight{{kOut, kIn}, random};
  balora_slot slots[BALORA_SLOTS] = {};

  ~Frozen() {
    for (balora_slot& slot : slots) {
      if (slot.data) slot.destroy(slot.data);
    }
  }
  View view() {
    View w = weight.view();
    w.slots = slots;
    return w;
  }
};

}  // namespace

TEST_CASE("packed weights: batches of all lengths share a bounded number of primitives") {
  TestContext ctx;
  const CpuState& state = CpuState::of(ctx);
  Frozen frozen;
  const View w = frozen.view();
  const auto forward_and_back = [&](int64_t rows) {
    Array<float> x({rows, kIn}, frozen.random), y({rows, kOut}), dx({rows, kIn});
    const View xv = x.view(), yv = y.view(), dxv = dx.view();
    LinearOperands linear = {};
    linear.weight.dense = &w;
    linear.y = &yv;
    REQUIRE(linear_forward_kernel(ctx, {.x = &xv, .linears = &linear, .count = 1}) == 0);
    REQUIRE(linear_backward_kernel(ctx, {.x = &xv, .dx = &dxv, .linears = &linear, .count = 1}) ==
            0);
  };
  for (int64_t rows = 1; rows <= kMostRows; ++rows) forward_and_back(rows);
  const size_t made = state.primitives();
  CHECK(made > 0);
  // In each direction: one that the layout was chosen by, multiples of the bucket, and rests.
  CHECK(made <= 2 * (1 + kMostRows / kBucket + kBucket - 1));
  for (const int64_t rows : {kMostRows + 7, kMostRows + 50, int64_t{3}, kMostRows}) {
    forward_and_back(rows);
  }
  CHECK(state.primitives() == made);
}

}  // namespace balora::test
