// Where the loader of device plug-ins looks, and in which order. The files hold text, so that the
// loader's refusal names the one it took. What it says of real libraries:
// test/device/plugin.test.ts.
#include "kernels/device_plugin.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "tensor/errors.h"

namespace {

namespace fs = std::filesystem;

// A build folder as a clone has one, with a family that nobody else asks for.
class Clone {
 public:
  Clone() {
    std::string name = (fs::temp_directory_path() / "balora-plugin-XXXXXX").string();
    root_ = mkdtemp(name.data());
    fs::create_directories(root_ / "release");
    fs::create_directories(root_ / "odd");
  }
  ~Clone() {
    fs::remove_all(root_);
    unsetenv("BALORA_ODD_PLUGIN");
  }
  Clone(const Clone&) = delete;
  Clone& operator=(const Clone&) = delete;

  std::string path(const char* folder) const { return (root_ / folder / "balora_odd.so").string(); }
  void write(const char* folder) { std::ofstream(path(folder)) << "no library"; }
  std::string refusal() const {
    try {
      balora::load_device_plugin("odd", (root_ / "release").string());
    } catch (const balora::UnsupportedError& error) {
      return error.what();
    }
    return "accepted";
  }

 private:
  fs::path root_;
};

bool names(const std::string& message, const std::string& path, const std::string& what) {
  return message.find("its plug-in " + path + " " + what) != std::string::npos;
}

}  // namespace

TEST_CASE("a device's plug-in is looked for beside the addon, then where a clone builds it") {
  Clone clone;
  const std::string absent = clone.refusal();
  CHECK(names(absent, clone.path("release"), "is not there (nor is " + clone.path("odd")));
  CHECK(absent.find("BALORA_ODD_PLUGIN is not set") != std::string::npos);
  CHECK(absent.find("npm run build:odd") != std::string::npos);
  clone.write("odd");
  CHECK(names(clone.refusal(), clone.path("odd"), "cannot be loaded"));
  clone.write("release");
  CHECK(names(clone.refusal(), clone.path("release"), "cannot be loaded"));
  setenv("BALORA_ODD_PLUGIN", "/nowhere/odd.so", 1);
  CHECK(names(clone.refusal(), "/nowhere/odd.so", "is not there (the path in BALORA_ODD_PLUGIN)"));
}
