// A code of an op that a device's kernels do not know is an error of the row, not an output that
// nobody has written.
#include "kernels/shared/op_codes.h"

#include <string>

#include "support/kernel_test.h"

namespace balora::test {
namespace {

// The answer to the first code that is none of `codes`, in the row's operands.
template <typename O, typename Code>
std::string refusal(KernelRow<O> row, O operands, Code O::*member, int codes, int past = 0) {
  operands.*member = static_cast<Code>(codes + past);
  TestContext ctx;
  Context* const context = ctx;
  const int32_t status = (cpu_kernel_table()->*row)(context, &operands);
  return status == 0 ? "accepted" : context->error;
}

std::string unknown(const std::string& what, int codes, int past = 0) {
  return what + " number " + std::to_string(codes + past) +
         " is not known to this device, whose kernels know " + std::to_string(codes);
}

}  // namespace

TEST_CASE("an op that a device does not know is refused, and nothing of it is done") {
  Array<float> x({4}, {1, 2, 3, 4}), y(std::vector<int64_t>{4});
  const View vx = x.view(), vy = y.view();
  CHECK(refusal(&KernelTable::unary, {.x = &vx, .y = &vy}, &balora_unary::op, BALORA_UNARY_OPS) ==
        unknown("unary op", BALORA_UNARY_OPS));
  CHECK(refusal(&KernelTable::unary_backward, {.dy = &vx, .saved = &vx, .dx = &vy},
                &balora_unary_backward::op, BALORA_UNARY_OPS,
                13) == unknown("unary op", BALORA_UNARY_OPS, 13));
  CHECK(refusal(&KernelTable::binary, {.a = &vx, .b = &vx, .y = &vy}, &balora_binary::op,
                BALORA_BINARY_OPS) == unknown("binary op", BALORA_BINARY_OPS));
  CHECK(refusal(&KernelTable::binary_backward, {.dy = &vx, .a = &vx, .b = &vx, .da = &vy},
                &balora_binary_backward::op,
                BALORA_BINARY_OPS) == unknown("binary op", BALORA_BINARY_OPS));
  CHECK(refusal(&KernelTable::compare, {}, &balora_compare::op, BALORA_COMPARE_OPS) ==
        unknown("comparison", BALORA_COMPARE_OPS));
  CHECK(refusal(&KernelTable::reduce, {}, &balora_reduce::op, BALORA_REDUCE_OPS) ==
        unknown("reduction", BALORA_REDUCE_OPS));
  CHECK(refusal(&KernelTable::reduce_backward, {}, &balora_reduce_backward::op,
                BALORA_REDUCE_OPS) == unknown("reduction", BALORA_REDUCE_OPS));
  CHECK(refusal(&KernelTable::gated_forward, {}, &balora_gated_forward::activation,
                BALORA_ACTIVATIONS) == unknown("activation", BALORA_ACTIVATIONS));
  CHECK(refusal(&KernelTable::gated_backward, {}, &balora_gated_backward::activation,
                BALORA_ACTIVATIONS) == unknown("activation", BALORA_ACTIVATIONS));
  CHECK(refusal(&KernelTable::cross_entropy_forward, {}, &balora_cross_entropy_forward::reduction,
                BALORA_REDUCTIONS) == unknown("reduction of a loss", BALORA_REDUCTIONS));
  CHECK(refusal(&KernelTable::norm_accumulate, {}, &balora_norm_accumulate::kind,
                BALORA_NORM_KINDS) == unknown("norm", BALORA_NORM_KINDS));
  Array<float> untouched(std::vector<int64_t>{4});
  CHECK(std::memcmp(y.data(), untouched.data(), sizeof(float) * 4) == 0);
}

}  // namespace balora::test
