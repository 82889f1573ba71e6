#include "engine/engine.h"

#include <doctest/doctest.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "engine/launch.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "ops/ops.h"
#include "support/engine_test.h"

using namespace balora;
using test::failure_of;
using test::ones;

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

namespace {

// Memory that a test changes.
struct Shared : ExternalMemory {
  std::vector<float> values = std::vector<float>(4, 1.0f);
  mutable std::atomic<int> checks{0};
  std::atomic<bool> changed{false};
  void refuse_changed() const override {
    ++checks;
    if (changed) throw FileChangedError("weights", "by the test");
  }
  void refuse_rewritten() const override { refuse_changed(); }
};

}  // namespace

TEST_CASE("engine: external memory is checked at the sync after an op that read it, once") {
  Engine engine(cpu_kernel_table(), {});
  const auto memory = std::make_shared<Shared>();
  const Tensor x = Tensor::external(engine, {4}, DType::kF32, memory->values.data(), memory);
  engine.stream().sync();
  CHECK(memory->checks == 0);
  Tensor y = binary(x, x, "add");
  y = binary(y, x, "mul");
  engine.stream().sync();
  CHECK(memory->checks == 1);
  memory->changed = true;
  binary(y, y, "add");
  CHECK(failure_of(engine) == "none");  // y was checked, and nothing reads x
  binary(x, y, "add");
  CHECK(failure_of(engine) == FileChangedError::kCode);
  CHECK(failure_of(engine) == "none");
}

TEST_CASE("engine: memory that changed is the reason, whatever failed on it") {
  Engine engine(cpu_kernel_table(), {});
  const auto memory = std::make_shared<Shared>();
  {
    const Tensor x = Tensor::external(engine, {4}, DType::kF32, memory->values.data(), memory);
    memory->changed = true;
    launch("read", {x}, {}, [](Launch&) -> int32_t { throw NotFiniteError("NaN"); });
  }  // the memory lives on until it is checked
  CHECK(failure_of(engine) == FileChangedError::kCode);
}

TEST_CASE("engine: what was computed from changed memory does not reach another engine") {
  Engine from(cpu_kernel_table(), {}), to(cpu_kernel_table(), {});
  const auto memory = std::make_shared<Shared>();
  const Tensor x = Tensor::external(from, {4}, DType::kF32, memory->values.data(), memory);
  memory->changed = true;
  const Tensor there = transfer(binary(x, x, "add"), to);
  std::vector<float> out(4);
  download(there, out.data());
  CHECK(failure_of(to) == "ERR_NATIVE");  // no value came
  CHECK(failure_of(from) == FileChangedError::kCode);
}

TEST_CASE("engine: a lack of the host's memory is named as one, wherever it shows") {
  Engine engine(cpu_kernel_table(), {});
  const auto failure = [&] {
    try {
      engine.stream().sync();
    } catch (const StreamError& error) {
      return error.failure_code() + ": " + error.what();
    }
    return std::string("none");
  };
  engine.stream().enqueue([] { throw std::bad_alloc(); });
  CHECK(failure() == "ERR_OUT_OF_MEMORY: out of memory");
  launch("read", {}, {full(engine, {1}, 1, DType::kF32)},
         [](Launch&) -> int32_t { throw std::bad_alloc(); });
  CHECK(failure() == "ERR_OUT_OF_MEMORY: read: out of memory [ -> f32(1)]");
}
