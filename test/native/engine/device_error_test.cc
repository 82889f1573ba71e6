// Codes of what goes wrong on a device, wherever the engine learns of it: a lack of memory is
// ERR_OUT_OF_MEMORY, anything else ERR_NATIVE. The device is the CPU under another name, one of
// whose rows fails.
#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>

#include "engine/graph.h"
#include "engine/launch.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "ops/ops.h"

using namespace balora;

namespace {

const char* said = "";  // by the row that fails

int32_t fail(Context* ctx) {
  std::snprintf(ctx->error, sizeof ctx->error, "%s", said);
  return 1;
}
int32_t fail_marking(Context* ctx, void**) {
  return fail(ctx);
}
int32_t fail_copy(Context* ctx, void*, const void*, uint64_t) {
  return fail(ctx);
}

// Rows of a device that does all at once.
void* pin(void*, uint64_t bytes) {
  return std::malloc(bytes);
}
void unpin(void*, void* data) {
  std::free(data);
}
int32_t copy(Context*, void* to, const void* from, uint64_t bytes) {
  std::memcpy(to, from, bytes);
  return 0;
}
int32_t mark(Context*, void** made) {
  static char one;
  *made = &one;
  return 0;
}
int32_t nothing(Context*) {
  return 0;
}

KernelTable device() {
  KernelTable table = *cpu_kernel_table();
  table.device = "pretended";
  table.pin = pin;
  table.unpin = unpin;
  table.copy_in = copy;
  table.copy_out = copy;
  table.mark = mark;
  table.reached = [](void*) { return int32_t{1}; };
  table.await_mark = [](void*, char*, uint64_t) { return int32_t{0}; };
  table.unmark = [](void*) {};
  table.synchronize = nothing;
  table.capture_begin = nothing;
  table.capture_end = mark;
  table.graph_launch = [](Context*, void*) { return int32_t{0}; };
  table.graph_destroy = [](void*, void*) {};
  return table;
}

// "code: message" of what `body` throws on such a device.
std::string failure_of(const KernelTable& table, const std::function<void(Engine&)>& body) {
  try {
    Engine engine(&table, {});
    body(engine);
    engine.stream().sync();
  } catch (const StreamError& error) {
    return error.failure_code() + ": " + error.what();
  } catch (const Error& error) {
    return std::string(error.code()) + ": " + error.what();
  }
  return "none";
}

Tensor uploaded(Engine& engine, int64_t bytes) {
  const std::string values(static_cast<size_t>(bytes), '\0');
  return upload(engine, {bytes}, DType::kU8, values.data());
}

const auto graph_of_one_op = [](Engine& engine) {
  const auto graph = Graph::begin(engine);
  const Tensor x = full(engine, {3}, 1, DType::kF32);
  graph->end();
  graph->run();
};

// The failure has the code that its text has, and keeps that text, behind and before what the
// engine adds.
void check_codes(const KernelTable& table, const std::function<void(Engine&)>& body) {
  CHECK(failure_of(device(), body) == "none");
  for (const auto& [text, code] : {std::pair("out of memory: 7 bytes wanted", "ERR_OUT_OF_MEMORY"),
                                   std::pair("an illegal address", "ERR_NATIVE")}) {
    said = text;
    const std::string failure = failure_of(table, body);
    CAPTURE(failure);
    CHECK(failure.starts_with(std::string(code) + ": "));
    CHECK(failure.find(text) != std::string::npos);
  }
}

}  // namespace

TEST_CASE("device errors: a lack of memory keeps its code") {
  KernelTable table = device();
  SUBCASE("in the wait for the device") {
    table.synchronize = fail;
    check_codes(table, [](Engine&) {});
  }
  SUBCASE("in a copy of a block") {
    table.copy_in = fail_copy;
    check_codes(table, [](Engine& engine) { uploaded(engine, 100); });
  }
  SUBCASE("in a copy part by part, and behind it") {
    constexpr int64_t kBytes = 6 * StagingRing::kChunkBytes;
    const auto parts = [](Engine& engine) { uploaded(engine, kBytes); };
    SUBCASE("of the copy") {
      table.copy_in = fail_copy;
    }
    SUBCASE("of the mark") {
      table.mark = fail_marking;
    }
    SUBCASE("of the wait for a part") {
      table.await_mark = [](void*, char* error, uint64_t size) {
        std::snprintf(error, size, "%s", said);
        return int32_t{1};
      };
    }
    check_codes(table, parts);
  }
  SUBCASE("in a copy without pinned memory") {
    table.pin = nullptr;
    table.upload = fail_copy;
    check_codes(table, [](Engine& engine) {
      const KernelTable& kernels = *engine.kernels();
      const bool pinned = kernels.pin != nullptr;
      uploaded(engine, pinned ? 1 : 100);
    });
  }
  SUBCASE("in the marks of the device's clock") {
    table.record = fail_marking;
    table.elapsed = [](void*, void*, double*) { return int32_t{0}; };
    check_codes(table, [](Engine& engine) {
      engine.state().profiling = true;
      full(engine, {3}, 1, DType::kF32);
    });
  }
  SUBCASE("in the check for values that are not finite") {
    table.check_finite = [](Context* ctx, const balora_check_finite*) { return fail(ctx); };
    check_codes(table, [](Engine& engine) {
      const Tensor x = full(engine, {3}, 1, DType::kF32);
      engine.state().anomaly_mode = true;
      affine(x, 2, 0);
    });
  }
  SUBCASE("in a graph's beginning") {
    table.capture_begin = fail;
    check_codes(table, graph_of_one_op);
  }
  SUBCASE("in a graph's end") {
    table.capture_end = fail_marking;
    check_codes(table, graph_of_one_op);
  }
  SUBCASE("in a graph's launch") {
    table.graph_launch = [](Context* ctx, void*) { return fail(ctx); };
    check_codes(table, graph_of_one_op);
  }
}

TEST_CASE("device errors: a value that is not finite keeps its code beside a device's failures") {
  const std::string failure = failure_of(device(), [](Engine& engine) {
    const Tensor x = full(engine, {3}, 1, DType::kF32);
    engine.state().anomaly_mode = true;
    affine(x, std::numeric_limits<double>::infinity(), 0);
  });
  CHECK(failure.starts_with("ERR_NOT_FINITE: affine: made a value that is not finite"));
}

TEST_CASE("device errors: a device that has no memory for its state is no unknown device") {
  KernelTable table = device();
  table.create_state = [](int32_t, char* error, uint64_t size) -> void* {
    std::snprintf(error, size, "%s", said);
    return nullptr;
  };
  said = "out of memory: the workspace";
  CHECK(failure_of(table, [](Engine&) {}) ==
        "ERR_OUT_OF_MEMORY: pretended:0: out of memory: the workspace");
  said = "no driver";
  CHECK(failure_of(table, [](Engine&) {}) == "ERR_UNSUPPORTED: pretended:0: no driver");
}
