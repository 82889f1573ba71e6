// Time by the device's own clock: two marks of the table, and the engine's op times while
// profiling, which have the work between them and not what lies before it in the queue.
#include <doctest/doctest.h>

#include "engine/engine.h"
#include "engine/launch.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "ops/ops.h"
#include "support/device_test.h"

namespace {

using namespace balora;
using namespace balora::test;

constexpr int64_t kMany = 1 << 20;

TEST_CASE("marks tell the seconds between them, once they are reached") {
  const KernelTable& k = device_table();
  TableContext device(k);
  const auto seconds_of = [&](int64_t n) {
    void* data = device.allocate(static_cast<uint64_t>(n) * sizeof(float));
    const View view = contiguous_view(data, BALORA_F32, {n});
    void *from = nullptr, *to = nullptr;
    double seconds = -1;
    REQUIRE(k.record(device.get(), &from) == 0);
    REQUIRE(call(k.fill, device.get(), {.y = &view, .value = 1}) == 0);
    REQUIRE(k.record(device.get(), &to) == 0);
    REQUIRE(k.synchronize(device.get()) == 0);
    CHECK(k.elapsed(from, to, &seconds) == 0);
    k.unmark(from);
    k.unmark(to);
    device.release(data, static_cast<uint64_t>(n) * sizeof(float));
    return seconds;
  };
  seconds_of(1);  // loads the kernel
  const double one = seconds_of(1), many = seconds_of(64 * kMany);
  CHECK(one >= 0);
  CHECK(many > one);
}

TEST_CASE("a device whose rows return when they have run needs no clock of its own") {
  CHECK_FALSE(cpu_kernel_table()->record);
  CHECK_FALSE(cpu_kernel_table()->elapsed);
}

double seconds(Engine& engine, const std::string& op, int64_t calls) {
  for (const OpTime& time : engine.op_times().read()) {
    if (time.op != op) continue;
    CHECK(time.calls == calls);
    return time.seconds;
  }
  return -1;
}

TEST_CASE("profiling counts an op's kernels, not its launch nor the queue before it") {
  Engine engine(&device_table(), {});
  engine.state().profiling = true;
  const Tensor big = full(engine, {16 * kMany}, 0, DType::kF32);
  const Tensor small = full(engine, {1}, 0, DType::kF32);
  unary(small, "exp");  // loads the kernels
  engine.stream().sync();
  engine.op_times().reset();
  for (int i = 0; i < 3; ++i) fill_in_place(big, i);
  for (int i = 0; i < 2; ++i) unary(small, "exp");
  engine.stream().sync();
  const double filled = seconds(engine, "fill_", 3), small_op = seconds(engine, "exp", 2);
  CHECK(filled > 0);
  CHECK(small_op > 0);
  CHECK(small_op / 2 < filled / 3);  // the queue held three fills when it was put in
}

TEST_CASE("more ops than the timer holds are all counted") {
  Engine engine(&device_table(), {});
  engine.state().profiling = true;
  const Tensor x = full(engine, {1}, 0, DType::kF32);
  engine.stream().sync();
  engine.op_times().reset();
  for (int i = 0; i < 5000; ++i) fill_in_place(x, i);
  engine.stream().sync();
  CHECK(seconds(engine, "fill_", 5000) > 0);
}

TEST_CASE("an op that fails leaves no mark behind") {
  Engine engine(&device_table(), {});
  engine.state().profiling = true;
  const Tensor x = full(engine, {1}, 0, DType::kF32);
  launch("refused", {}, {x}, [](Launch& l) {
    std::snprintf(l.ctx->error, sizeof l.ctx->error, "no");
    return 1;
  });
  CHECK_THROWS_WITH(engine.stream().sync(), "refused: no [ -> f32(1)]");
  fill_in_place(x, 1);
  CHECK_NOTHROW(engine.stream().sync());
  CHECK(seconds(engine, "refused", 0) == -1);
}

}  // namespace
