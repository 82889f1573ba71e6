// Opening a device: each reason why it cannot be used is told in words that say what to do, and
// leaves nothing behind. And errors of kernels that show later: they name the kernel.
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

// What create_state says of a device that it refuses; "" for one that it opens.
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
    return k.fill(ctx, view(y), 3);
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
    return k.fill(ctx, &longer, 3);
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
  CHECK(t.synchronize() == 0);  // the emulated device tells once
}

}  // namespace
