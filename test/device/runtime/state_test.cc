// Opening a device: each reason why it cannot be used is an error that says what to do, and leaves
// nothing behind. And errors of kernels that show later: they name the kernel, whichever call finds
// them, and are reported once.
#include <thread>

#include "engine/engine.h"
#include "engine/launch.h"
#include "kernels/shared/op_codes.h"
#include "ops/linalg/linalg.h"
#include "ops/ops.h"
#include "support/device_test.h"
#include "support/setting.h"

namespace {

using namespace balora;
using namespace balora::test;

bool emulated() {
  static const bool value = DeviceTest().emulated();
  if (!value) MESSAGE("skipped: only the emulated device can pretend this");
  return value;
}

// The message of create_state about a device that it refuses; "" for one that it opens.
std::string refusal(int32_t device) {
  char error[512] = "";
  void* state = device_table().create_state(device, error, sizeof error);
  if (state) {
    device_table().destroy_state(state);
    return "";
  }
  CHECK(error[0] != '\0');
  return error;
}

TEST_CASE("a device that is not there is refused by its number") {
  for (const int32_t device : {-1, 97}) {
    const std::string said = refusal(device);
    CHECK(said.find("there is no cuda:" + std::to_string(device) + "; this machine has ") == 0);
    CHECK(said.find(" CUDA device(s), from cuda:0 on") != std::string::npos);
  }
}

TEST_CASE("a machine without a GPU, a driver, or a new one is told what is missing") {
  if (!emulated()) return;
  {
    const Setting none("BALORA_EMULATOR_DEVICES", "0");
    CHECK(refusal(0) == "no CUDA device was found (no CUDA-capable device is detected)");
  }
  {
    const Setting one("BALORA_EMULATOR_DEVICES", "1");
    CHECK(refusal(0) == "");
    CHECK(refusal(1) == "there is no cuda:1; this machine has 1 CUDA device(s), from cuda:0 on");
  }
  {
    const Setting driver("BALORA_EMULATOR_DRIVER", "0");
    CHECK(refusal(0) ==
          "no NVIDIA driver was found (libcuda.so.1); install the driver, or use device \"cpu\"");
  }
  {
    const Setting driver("BALORA_EMULATOR_DRIVER", "12080");
    CHECK(refusal(0) ==
          "the NVIDIA driver is for CUDA 12.8, this plug-in needs CUDA 13; install a newer driver");
  }
  for (const char* newer : {"13010", "14020"}) {
    const Setting driver("BALORA_EMULATOR_DRIVER", newer);
    CHECK(refusal(0) == "");
  }
  CHECK(refusal(0) == "");  // a later attempt looks again
}

TEST_CASE("a GPU below compute capability 8.0 is refused") {
  if (!emulated()) return;
  for (const char* old : {"75", "61"}) {
    const Setting capability("BALORA_EMULATOR_CAPABILITY", old);
    CHECK(refusal(0) == std::string("emulated device has compute capability ") + old[0] + "." +
                            old[1] + "; the kernels need 8.0 or newer");
  }
  const Setting capability("BALORA_EMULATOR_CAPABILITY", "90");
  CHECK(refusal(0) == "");
}

TEST_CASE("a refusal is not the error of this thread's next launch") {
  DeviceTest t;
  refusal(97);
  if (t.emulated()) {
    const Setting none("BALORA_EMULATOR_DEVICES", "0");
    refusal(0);
  }
  const Array y = t.empty<float>({33});
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.fill, ctx, {.y = view(y), .value = 3});
  });
  t.check_equal(y);
}

TEST_CASE("an error that shows later names the last kernel before it") {
  if (!emulated()) return;
  DeviceTest t;
  const Array y = t.empty<float>({33});
  const Setting bare("BALORA_EMULATOR_WORDS", "0");
  // Writes beyond the end; a real device would be lost after it.
  REQUIRE(t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
    View longer = *view(y);
    longer.shape[0] = 4000;
    return call(k.fill, ctx, {.y = &longer, .value = 3});
  }) == 0);
  const std::string words = "unspecified launch failure, at or before the kernel fill";
  SUBCASE("at a synchronisation") {
    CHECK(t.synchronize() != 0);
    CHECK(t.error() == "the device: " + words);
  }
  SUBCASE("at a copy") {
    float host = 0;
    Context* ctx = t.device_context();
    CHECK(device_table().download(ctx, &host, y->device_view().data, sizeof host) != 0);
    CHECK(t.error() == "download: " + words);
  }
  SUBCASE("at a mark in the stream") {
    void* mark = nullptr;
    REQUIRE(device_table().mark(t.device_context(), &mark) == 0);
    char error[256] = "";
    CHECK(device_table().await_mark(mark, error, sizeof error) != 0);
    CHECK(error == words);
    device_table().unmark(mark);
  }
  CHECK(t.synchronize() == 0);  // the emulated device reports it once
}

// While it lives, every later call returns a kernel's error, from the next one on.
struct AsOnAGpu {
  Setting at_once{"BALORA_EMULATOR_LAZY", "0"}, stays{"BALORA_EMULATOR_STICKY", "1"},
      bare{"BALORA_EMULATOR_WORDS", "0"};
};

// Writes beyond the end, and succeeds as far as its launch knows.
int32_t fill_too_much(const KernelTable& k, Context* ctx, View view) {
  view.shape[0] = 4000;
  return call(k.fill, ctx, {.y = &view, .value = 3});
}

const std::string kBrokenByFill = "unspecified launch failure, at or before the kernel fill";

TEST_CASE("what a broken device refuses is not the fault of who asks") {
  if (!emulated()) return;
  DeviceTest t;
  const KernelTable& k = device_table();
  Context* ctx = t.device_context();
  const Array x = t.random<float>({33}), y = t.empty<float>({33});
  t.both([&](const KernelTable& table, Context* side, const auto& view) {
    return call(table.fill, side, {.y = view(y), .value = 3});
  });
  const View vx = x->device_view(), vy = y->device_view();
  {
    const AsOnAGpu settings;
    REQUIRE(fill_too_much(k, ctx, vy) == 0);
    SUBCASE("a launch") {
      CHECK(call(k.unary, ctx, {.x = &vx, .y = &vy, .op = BALORA_EXP, .a = 0, .b = 0}) != 0);
      CHECK(t.error().find(": " + kBrokenByFill) != std::string::npos);
    }
    SUBCASE("a copy") {
      CHECK(call(k.copy, ctx, {.source = &vx, .destination = &vy}) != 0);
      CHECK(t.error() == "copy: " + kBrokenByFill);
    }
    SUBCASE("device memory, which the next row reports") {
      CHECK(k.allocate(ctx->device_state, 64) == nullptr);
      CHECK(k.synchronize(ctx) != 0);
      CHECK(t.error() == "allocate: " + kBrokenByFill);
    }
    SUBCASE("pinned memory, which the next row reports") {
      CHECK(k.pin(ctx->device_state, 64) == nullptr);
      CHECK(k.synchronize(ctx) != 0);
      CHECK(t.error() == "allocate: " + kBrokenByFill);
    }
    CHECK(k.synchronize(ctx) != 0);
    CHECK(t.error() == "the device: " + kBrokenByFill);
  }
  CHECK(t.synchronize() != 0);
  CHECK(t.synchronize() == 0);
}

TEST_CASE("a device without memory for its own state is not called unavailable") {
  if (!emulated()) return;
  for (const char* bytes : {"1", "6000000"}) {  // less than cuBLAS takes, and than its workspace
    const Setting little("BALORA_EMULATOR_MEMORY", bytes);
    CHECK(refusal(0).starts_with("out of memory: "));
    try {
      const Engine engine(&device_table(), {});
      FAIL("it must be refused");
    } catch (const Error& error) {
      CHECK(std::string(error.code()) == "ERR_OUT_OF_MEMORY");
      CHECK(std::string(error.what()).starts_with("cuda:0: out of memory: "));
    }
  }
  CHECK(refusal(0) == "");
}

TEST_CASE("scratch that does not suffice is a lack of memory, with the sizes") {
  Engine engine(&device_table(), {});
  const Tensor x = full(engine, {64, 64}, 1, DType::kF32);
  engine.stream().sync();
  engine.allocator().set_limit(3 * 64 * 64 * 4);  // x, q and r; nothing beside them
  const auto [q, r] = qr(x);
  try {
    engine.stream().sync();
    FAIL("it must fail");
  } catch (const StreamError& error) {
    CHECK(error.failure_code() == "ERR_OUT_OF_MEMORY");
    const std::string said = error.what();
    CHECK(said.find("qr: out of memory: ") == 0);
    CHECK(said.find(" bytes wanted, 49152 in use on cuda:0, the limit is 49152") !=
          std::string::npos);
  }
  engine.allocator().set_limit(0);
  CHECK_NOTHROW(engine.stream().sync());
}

TEST_CASE("memory that is used up is no failure of the device") {
  if (!emulated()) return;
  DeviceTest t;
  const Setting none("BALORA_EMULATOR_MEMORY", "1");
  CHECK(device_table().allocate(t.device_context()->device_state, 64) == nullptr);
  CHECK(t.synchronize() == 0);
}

TEST_CASE("an op that a broken device cannot serve is reported with what broke it") {
  if (!emulated()) return;
  const Setting exact("BALORA_EXACT_BLOCKS", "1");  // so that a tensor's end is known
  Engine engine(&device_table(), {});
  const Tensor x = full(engine, {33}, 0, DType::kF32);
  engine.stream().sync();
  std::string said;
  {
    const AsOnAGpu settings;
    launch("spoil", {}, {x}, [](Launch& l) { return fill_too_much(*l.kernels, l.ctx, *l.out(0)); });
    const Tensor y = full(engine, {33}, 1, DType::kF32);
    try {
      engine.stream().sync();
    } catch (const StreamError& error) {
      said = error.what();
    }
  }
  CHECK(said.find("full: out of memory: 132 bytes wanted") == 0);
  CHECK(said.ends_with("\n  after cuda:0: allocate: " + kBrokenByFill));
  CHECK_THROWS(engine.stream().sync());
  CHECK_NOTHROW(engine.stream().sync());
}

TEST_CASE("an error that was reported is not that of the next launch") {
  DeviceTest t;
  const KernelTable& k = device_table();
  Context* ctx = t.device_context();
  const Array y = t.empty<float>({33});
  SUBCASE("of a copy that a graph cannot hold") {
    void* graph = nullptr;
    float host = 0;
    REQUIRE(k.capture_begin(ctx) == 0);
    CHECK(k.download(ctx, &host, y->device_view().data, sizeof host) != 0);
    CHECK(k.capture_end(ctx, &graph) != 0);
  }
  SUBCASE("of marks that know no time") {
    void *from = nullptr, *to = nullptr;
    double seconds = 0;
    REQUIRE(k.mark(ctx, &from) == 0);
    REQUIRE(k.mark(ctx, &to) == 0);
    REQUIRE(k.synchronize(ctx) == 0);
    CHECK(k.elapsed(from, to, &seconds) != 0);
    k.unmark(from);
    k.unmark(to);
  }
  SUBCASE("of memory that is not the device's") {
    double host = 0;
    k.release(ctx->device_state, &host, sizeof host);
  }
  SUBCASE("of a mark that may not have been reached") {
    void* mark = nullptr;
    REQUIRE(k.mark(ctx, &mark) == 0);
    k.reached(mark);
    k.unmark(mark);
  }
  View view = y->device_view();
  const int32_t status = call(k.fill, ctx, {.y = &view, .value = 3});
  CHECK_MESSAGE(status == 0, t.error());
  CHECK(t.synchronize() == 0);
}

TEST_CASE("a thread that has chosen no device asks for another's marks") {
  if (!emulated()) return;
  const KernelTable& k = device_table();
  Context ctx{};
  ctx.device_state = k.create_state(1, ctx.error, sizeof ctx.error);
  REQUIRE_MESSAGE(ctx.device_state, ctx.error);
  void *from = nullptr, *to = nullptr;
  REQUIRE(k.record(&ctx, &from) == 0);
  REQUIRE(k.record(&ctx, &to) == 0);
  int32_t before = -1, waited = -1, after = -1, timed = -1;
  std::thread([&] {
    char error[256] = "";
    before = k.reached(to);  // the emulated device has run nothing yet
    waited = k.await_mark(to, error, sizeof error);
    after = k.reached(to);
  }).join();
  std::thread([&] {
    double seconds = 0;
    timed = k.elapsed(from, to, &seconds);
  }).join();
  CHECK(before == 0);
  CHECK(waited == 0);
  CHECK(after == 1);
  CHECK(timed == 0);
  k.unmark(from);
  k.unmark(to);
  k.destroy_state(ctx.device_state);
}

}  // namespace
