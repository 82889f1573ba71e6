// Which cuBLAS a device opens, and what is said when there is none or one does not start.
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "support/device_test.h"

namespace {

using namespace balora;
using namespace balora::test;

// The message of a device that refuses to open has all these parts.
void check_refusal(const std::vector<const char*>& parts) {
  std::string said;
  try {
    DeviceTest t;
  } catch (const std::exception& error) {
    said = error.what();
  }
  for (const char* part : parts) {
    CHECK_MESSAGE(said.find(part) != std::string::npos, "'", part, "' is not in: ", said);
  }
}

// The skipped cases are run by those behind them in a process of their own: the library is looked
// for once a process.
bool passes_alone(const std::string& environment, const std::string& name) {
  char self[4096] = {};
  REQUIRE(readlink("/proc/self/exe", self, sizeof self - 1) > 0);
  const std::string command = environment + " '" + self + "' --no-skip -tc='" + name + "'";
  return std::system(command.c_str()) == 0;
}

bool cublas_is_emulated() {
  const char* plugin = std::getenv("BALORA_CUDA_PLUGIN");
  const bool emulated = plugin && std::strstr(plugin, "emulator");
  if (!emulated) MESSAGE("skipped: only the emulated device can be without its cuBLAS");
  return emulated;
}

TEST_CASE("opening a device without cuBLAS" * doctest::skip()) {
  check_refusal({"cuBLAS was not found", "libcublas.so.13 (", "libcublas.so.12 (", "file too short",
                 "LD_LIBRARY_PATH"});
}

// A folder of LD_LIBRARY_PATH has empty files of its names, so that no library of
// the machine is met.
TEST_CASE("a machine without cuBLAS is told what was looked for") {
  if (!cublas_is_emulated()) return;
  std::string folder = (std::filesystem::temp_directory_path() / "balora-blas-XXXXXX").string();
  REQUIRE(mkdtemp(folder.data()));
  for (const char* name : {"/libcublas.so.13", "/libcublas.so.12"}) std::ofstream(folder + name);
  CHECK(passes_alone("BALORA_EMULATOR_NO_CUBLAS=1 LD_LIBRARY_PATH='" + folder + "'",
                     "opening a device without cuBLAS"));
  std::filesystem::remove_all(folder);
}

TEST_CASE("a product by the second cuBLAS" * doctest::skip()) {
  DeviceTest t;
  const Array a = t.random<float>({7, 5}), b = t.random<float>({5, 9}), c = t.empty<float>({7, 9});
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.matmul, ctx, {.a = view(a), .b = view(b), .c = view(c), .alpha = 1});
  });
  t.check_close(c, 1e-6);
}
TEST_CASE("opening a device where no cuBLAS starts" * doctest::skip()) {
  check_refusal({"libcublas.so.13 (it does not start: ", "libcublas.so.12 (it does not start: "});
}

TEST_CASE("a cuBLAS that does not start gives way to the other version's") {
  if (!cublas_is_emulated()) return;
  const std::string broken = "BALORA_EMULATOR_BROKEN_CUBLAS=libcublas.so.13";
  CHECK(passes_alone(broken, "a product by the second cuBLAS"));
  CHECK(passes_alone(broken + ",libcublas.so.12", "opening a device where no cuBLAS starts"));
}

}  // namespace
