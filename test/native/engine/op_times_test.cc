#include "engine/op_times.h"

#include <doctest/doctest.h>

#include <vector>

#include "engine/engine.h"
#include "engine/launch.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "ops/ops.h"

using namespace balora;

TEST_CASE("op times: calls and seconds by phase and op, until reset") {
  Engine engine(cpu_kernel_table(), {});
  const std::vector<float> values(100, 1.0f);
  const Tensor x = upload(engine, {10, 10}, DType::kF32, values.data());
  engine.phase = engine.op_times().phase("forward");
  CHECK(engine.phase == engine.op_times().phase("forward"));
  const Tensor y = softmax(softmax(x));
  engine.stream().sync();
  double calls = 0;
  for (const OpTime& time : engine.op_times().read()) {
    CHECK(time.seconds > 0);
    if (time.phase == "forward") calls += static_cast<double>(time.calls);
  }
  CHECK(calls == 2);
  engine.op_times().reset();
  CHECK(engine.op_times().read().empty());
}
