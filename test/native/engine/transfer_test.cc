// Copies between two engines: their values, their order beside other ops, and what becomes of them
// when either side fails or is abandoned. Both engines are the CPU's, so that the thread sanitizer
// sees every access.
#include <doctest/doctest.h>

#include <atomic>
#include <future>
#include <string>
#include <vector>

#include "engine/launch.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "ops/ops.h"

using namespace balora;

namespace {

std::vector<float> values(const Tensor& t) {
  std::vector<float> host(static_cast<size_t>(t.numel()));
  download(t, host.data());
  t.engine().stream().sync();
  return host;
}

std::string failure_of(Engine& engine) {
  try {
    engine.stream().sync();
  } catch (const StreamError& error) {
    return error.what();
  }
  return "none";
}

}  // namespace

TEST_CASE("transfer: values arrive in the order in which they were enqueued") {
  Engine first(cpu_kernel_table(), {}), second(cpu_kernel_table(), {});
  Tensor x = full(first, {1000}, 0, DType::kF32);
  std::vector<Tensor> copies;
  for (int i = 0; i < 100; ++i) {
    add_in_place(x, full(first, {1000}, 1, DType::kF32), 1);
    Tensor there = transfer(x, second);
    scale_in_place(there, full(second, {}, 2, DType::kF64));
    copies.push_back(transfer(there, first));
  }
  for (size_t i = 0; i < copies.size(); ++i) {
    const std::vector<float> got = values(copies[i]);
    CHECK(got.front() == 2 * static_cast<float>(i + 1));
    CHECK(got.back() == got.front());
  }
  CHECK(transfer(full(first, {0}, 0, DType::kF32), second).numel() == 0);
}

TEST_CASE(
    "transfer: a source that failed is reported on both sides, as a cause and as a consequence") {
  Engine first(cpu_kernel_table(), {}), second(cpu_kernel_table(), {});
  first.allocator().set_limit(1000);
  const Tensor there = transfer(full(first, {1000}, 1, DType::kF32), second);
  CHECK(failure_of(second).find("no value came from cpu") != std::string::npos);
  CHECK(failure_of(first).find("out of memory") != std::string::npos);
  // The target had memory for a value that never came.
  CHECK(second.allocator().stats().live_bytes == 0);
  CHECK(failure_of(second) == "none");
}

TEST_CASE("transfer: a target that waits is woken when the source is abandoned") {
  Engine first(cpu_kernel_table(), {}), second(cpu_kernel_table(), {});
  const Tensor x = full(first, {10}, 1, DType::kF32);
  std::promise<void> gate;
  first.stream().enqueue([opened = gate.get_future().share()] { opened.wait(); });
  const Tensor there = transfer(x, second);
  first.stream().abandon();
  gate.set_value();
  CHECK(failure_of(second).find("no value came from cpu") != std::string::npos);
  CHECK(failure_of(first) == "the engine is shutting down");
}
