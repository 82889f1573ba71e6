#include "engine/engine.h"

#include <doctest/doctest.h>

#include <vector>

#include "engine/launch.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "ops/ops.h"

using namespace balora;

namespace {
Tensor ones(Engine& engine, const Shape& shape) {
  std::vector<float> values(static_cast<size_t>(shape.numel()), 1.0f);
  return upload(engine, shape, DType::kF32, values.data());
}
}  // namespace

TEST_CASE("engine: memory is exact, cached and given back") {
  Engine engine(cpu_kernel_table(), {});
  CHECK(engine.allocator().stats().live_bytes == 0);
  {
    const Tensor x = ones(engine, {1000, 10});
    engine.stream().sync();
    CHECK(engine.allocator().stats().live_bytes == 40'000);
    CHECK(engine.allocator().stats().cached_bytes < 64 * 1024);  // the rest of its pages
  }
  MemoryStats stats = engine.allocator().stats();
  CHECK(stats.live_bytes == 0);
  CHECK(stats.peak_bytes == 40'000);
  CHECK(stats.cached_bytes >= 40'000);
  const int64_t allocations = stats.allocations;
  {
    const Tensor x = ones(engine, {1000, 10});
    engine.stream().sync();
    CHECK(engine.allocator().stats().allocations == allocations);  // served from the cache
  }
  engine.allocator().trim();
  CHECK(engine.allocator().stats().cached_bytes == 0);
}

TEST_CASE("engine: queued ops hold no memory until their turn, intermediates die early") {
  Engine engine(cpu_kernel_table(), {});
  const Tensor weight = ones(engine, {1000});
  Tensor x = ones(engine, {1000, 1000});
  for (int i = 0; i < 20; ++i) x = rms_norm(x, weight, 1e-6, 0, true);
  engine.stream().sync();
  // The input, the output, one more and the statistics: never twenty.
  CHECK(engine.allocator().stats().peak_bytes < 3 * 4'100'000);
}

TEST_CASE("engine: tags count live bytes by name") {
  Engine engine(cpu_kernel_table(), {});
  engine.memory_tag = engine.allocator().tag("weights");
  const Tensor w = ones(engine, {256});
  engine.memory_tag = engine.allocator().tag("default");
  const Tensor x = ones(engine, {16});
  engine.stream().sync();
  for (const auto& [name, bytes] : engine.allocator().stats().by_tag) {
    CHECK(bytes == (name == "weights" ? 1024 : 64));
  }
}

TEST_CASE("engine: two engines are strangers") {
  Engine a(cpu_kernel_table(), {}), b(cpu_kernel_table(), {});
  const Tensor x = ones(a, {4, 4}), w = ones(b, {4});
  CHECK_THROWS_AS(rms_norm(x, w, 1e-6, 0, true), ArgumentError);
}

TEST_CASE("engine: tensors may outlive the queue, not the engine's work") {
  std::vector<float> out(4);
  {
    Engine engine(cpu_kernel_table(), {});
    const Tensor x = ones(engine, {4});
    download(x, out.data());
    engine.stream().sync();
  }
  CHECK(out[3] == 1.0f);
}

TEST_CASE("engine: a table of another ABI is refused") {
  KernelTable table = *cpu_kernel_table();
  table.abi = BALORA_ABI + 1;
  CHECK_THROWS_AS(Engine(&table, {}), UnsupportedError);
}
