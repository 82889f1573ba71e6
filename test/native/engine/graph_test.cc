// Graphs of the CPU, whose calls the engine keeps (recorded_ops.h).
#include "engine/graph.h"

#include <doctest/doctest.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "engine/launch.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "ops/ops.h"

using namespace balora;

namespace {

constexpr int64_t kCount = 1000;

Tensor filled(Engine& engine, float value) {
  const std::vector<float> values(kCount, value);
  return upload(engine, {kCount}, DType::kF32, values.data());
}

std::vector<float> read(const Tensor& x) {
  std::vector<float> values(static_cast<size_t>(x.numel()));
  download(x, values.data());
  x.engine().stream().sync();
  return values;
}

}  // namespace

TEST_CASE("graph: records without running, and computes with the values of each run") {
  Engine engine(cpu_kernel_table(), {});
  Tensor x = filled(engine, 2), total = filled(engine, 0);
  const std::shared_ptr<Graph> graph = Graph::begin(engine);
  Tensor y = x;
  for (int i = 0; i < 10; ++i) y = binary(y, x, "add");  // intermediate results die while recording
  add_in_place(total, y, 1);
  graph->end();
  CHECK(read(total) == std::vector<float>(kCount, 0));
  const int64_t version = total.version();
  graph->run();
  CHECK(total.version() == version);  // recording counted the first run
  CHECK(read(total) == std::vector<float>(kCount, 22));
  copy_in_place(x, filled(engine, 3));
  graph->run();
  CHECK(total.version() == version + 1);
  CHECK(read(total) == std::vector<float>(kCount, 55));
  CHECK(read(y) == std::vector<float>(kCount, 33));
}

TEST_CASE("graph: its memory is reused within, and freed with the last of it") {
  Engine engine(cpu_kernel_table(), {});
  const Tensor x = filled(engine, 1);
  Tensor y = x;
  {
    std::shared_ptr<Graph> graph = Graph::begin(engine);
    for (int i = 0; i < 100; ++i) y = binary(y, x, "add");
    graph->end();
    for (const auto& [name, bytes] : engine.allocator().stats().by_tag) {
      if (name == "graphs") CHECK(bytes <= 64 << 10);
    }
    graph->run();
  }
  CHECK(read(y) == std::vector<float>(kCount, 101));
  y = x;
  engine.stream().sync();
  for (const auto& [name, bytes] : engine.allocator().stats().by_tag) {
    if (name == "graphs") CHECK(bytes == 0);
  }
}

TEST_CASE("graph: a recording that fails leaves an engine that runs, and a graph that does not") {
  Engine engine(cpu_kernel_table(), {});
  const Tensor x = filled(engine, 1);
  const std::shared_ptr<Graph> graph = Graph::begin(engine);
  CHECK_THROWS_AS(upload(engine, {1}, DType::kF32, "0123"), ArgumentError);
  CHECK_THROWS_AS(Graph::begin(engine), ArgumentError);
  engine.stream().enqueue([] { throw NativeError("planted"); });
  CHECK_THROWS_WITH(graph->end(), doctest::Contains("planted"));
  CHECK(read(binary(x, x, "add")) == std::vector<float>(kCount, 2));
  graph->run();
  CHECK_THROWS_WITH(engine.stream().sync(), doctest::Contains("not recorded to its end"));
}

TEST_CASE("graph: an op that fails in a run is named") {
  Engine engine(cpu_kernel_table(), {});
  const Tensor table = upload(engine, {2, 1}, DType::kF32, "01234567");
  const int32_t good[] = {0, 1}, bad[] = {0, 7};
  Tensor ids = upload(engine, {2}, DType::kI32, good);
  const std::shared_ptr<Graph> graph = Graph::begin(engine);
  const Tensor rows = embedding(table, ids);
  graph->end();
  graph->run();
  engine.stream().sync();
  copy_in_place(ids, upload(engine, {2}, DType::kI32, bad));
  graph->run();
  CHECK_THROWS_WITH(engine.stream().sync(), doctest::Contains("graph: embedding: "));
}

TEST_CASE("graph: an op that an abort ends early is no failure, whatever its kernel returns") {
  Engine engine(cpu_kernel_table(), {});
  const Tensor x = filled(engine, 1), y = filled(engine, 0);
  const auto flag = std::make_shared<std::atomic<bool>>(false);
  const std::shared_ptr<Graph> graph = Graph::begin(engine);
  launch("left early", {x}, {y}, [flag](Launch&) -> int32_t {
    *flag = true;
    return 1;
  });
  graph->end();
  engine.state().abort = flag;
  graph->run();
  engine.state().abort = nullptr;
  CHECK_NOTHROW(engine.stream().sync());
  std::vector<float> values(kCount);
  download(y, values.data());
  CHECK_THROWS_WITH(engine.stream().sync(), doctest::Contains("was aborted"));
}
