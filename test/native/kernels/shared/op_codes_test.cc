// A code of an op that a device's kernels do not know is an error of the row, not an output that
// nobody has written.
#include "kernels/shared/op_codes.h"

#include <string>

#include "support/kernel_test.h"

namespace balora::test {
namespace {

template <typename O>
std::string refusal(KernelRow<O> row, const O& operands) {
  TestContext ctx;
  Context* const context = ctx;
  const int32_t status = (cpu_kernel_table()->*row)(context, &operands);
  return status == 0 ? "accepted" : context->error;
}

template <typename Code>
constexpr Code code(int number) {
  return static_cast<Code>(number);
}

}  // namespace

TEST_CASE("an op that a device does not know is refused, and nothing of it is done") {
  Array<float> x({4}, {1, 2, 3, 4}), y(std::vector<int64_t>{4});
  const View vx = x.view(), vy = y.view();
  CHECK(refusal(&KernelTable::unary,
                balora_unary{.x = &vx, .y = &vy, .op = code<balora_unary_op>(18)}) ==
        "unary op number 18 is not known to this device, whose kernels know 18");
  CHECK(refusal(&KernelTable::unary_backward,
                balora_unary_backward{
                    .dy = &vx, .saved = &vx, .dx = &vy, .op = code<balora_unary_op>(31)}) ==
        "unary op number 31 is not known to this device, whose kernels know 18");
  CHECK(refusal(&KernelTable::binary,
                balora_binary{.a = &vx, .b = &vx, .y = &vy, .op = code<balora_binary_op>(7)}) ==
        "binary op number 7 is not known to this device, whose kernels know 7");
  CHECK(refusal(&KernelTable::binary_backward,
                balora_binary_backward{
                    .dy = &vx, .a = &vx, .b = &vx, .da = &vy, .op = code<balora_binary_op>(7)}) ==
        "binary op number 7 is not known to this device, whose kernels know 7");
  CHECK(refusal(&KernelTable::compare, balora_compare{.op = code<balora_compare_op>(6)}) ==
        "comparison number 6 is not known to this device, whose kernels know 6");
  CHECK(refusal(&KernelTable::reduce, balora_reduce{.op = code<balora_reduce_op>(4)}) ==
        "reduction number 4 is not known to this device, whose kernels know 4");
  CHECK(refusal(&KernelTable::reduce_backward,
                balora_reduce_backward{.op = code<balora_reduce_op>(4)}) ==
        "reduction number 4 is not known to this device, whose kernels know 4");
  CHECK(refusal(&KernelTable::gated_forward,
                balora_gated_forward{.activation = code<balora_activation>(3)}) ==
        "activation number 3 is not known to this device, whose kernels know 3");
  CHECK(refusal(&KernelTable::gated_backward,
                balora_gated_backward{.activation = code<balora_activation>(3)}) ==
        "activation number 3 is not known to this device, whose kernels know 3");
  CHECK(refusal(&KernelTable::cross_entropy_forward,
                balora_cross_entropy_forward{.reduction = code<balora_reduction>(3)}) ==
        "reduction of a loss number 3 is not known to this device, whose kernels know 3");
  CHECK(refusal(&KernelTable::norm_accumulate,
                balora_norm_accumulate{.kind = code<balora_norm_kind>(3)}) ==
        "norm number 3 is not known to this device, whose kernels know 3");
  Array<float> untouched(std::vector<int64_t>{4});
  CHECK(std::memcmp(y.data(), untouched.data(), sizeof(float) * 4) == 0);
}

}  // namespace balora::test
