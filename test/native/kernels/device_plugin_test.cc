// Where the loader of device plug-ins looks, and in which order; and that a table lacks nothing.
// The files hold text, so that the loader's refusal names the one it took. What it says of real
// libraries: test/device/plugin.test.ts.
#include "kernels/device_plugin.h"

#include <doctest/doctest.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

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
  ~Clone() { fs::remove_all(root_); }
  Clone(const Clone&) = delete;
  Clone& operator=(const Clone&) = delete;

  std::string path(const char* folder) const { return (root_ / folder / "balora_odd.so").string(); }
  void write(const char* folder) { std::ofstream(path(folder)) << "no library"; }
  std::string refusal(const std::string& given = "") const {
    try {
      balora::load_device_plugin("odd", {(root_ / "release").string(), given});
    } catch (const balora::UnsupportedError& error) {
      return error.what();
    }
    return "accepted";
  }

 private:
  fs::path root_;
};

// A table with every function, none of which is called.
balora::KernelTable full_table() {
  const auto fill = []<typename F>(F*& function) { function = reinterpret_cast<F*>(uintptr_t{1}); };
  balora::KernelTable table = {};
  table.abi = BALORA_ABI;
  table.size = sizeof table;
  table.device = "odd";
  table.codes = BALORA_KNOWN_CODES;
  fill(table.create_state), fill(table.destroy_state);
  fill(table.allocate), fill(table.release), fill(table.discard);
  fill(table.upload), fill(table.download);
  fill(table.pin), fill(table.unpin), fill(table.copy_in), fill(table.copy_out);
  fill(table.mark), fill(table.reached), fill(table.await_mark), fill(table.unmark);
  fill(table.record), fill(table.elapsed);
  fill(table.synchronize), fill(table.describe), fill(table.memory);
  fill(table.capture_begin), fill(table.capture_end);
  fill(table.graph_launch), fill(table.graph_destroy);
#define KERNEL(name) fill(table.name);
#include "kernels/kernels.def"
  return table;
}

// The message of check_device_table() about odd.so's table after "the plug-in odd.so "; "":
// it fits.
std::string verdict(const balora::KernelTable& table) {
  try {
    balora::check_device_table(&table, "odd", "odd.so");
    return "";
  } catch (const balora::UnsupportedError& error) {
    const std::string message = error.what(), about = "device \"odd\": the plug-in odd.so ";
    REQUIRE(message.starts_with(about));
    return message.substr(about.size());
  }
}

const std::string kRebuild = "; build it from the same source as the addon (\"npm run build:odd\")";

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
  CHECK(balora::plugin_variable("odd") == "BALORA_ODD_PLUGIN");
  CHECK(names(clone.refusal("/nowhere/odd.so"), "/nowhere/odd.so",
              "is not there (the path in BALORA_ODD_PLUGIN)"));
}

TEST_CASE("a device's table without a row, or without a function that every device has, is named") {
  CHECK(verdict(full_table()) == "");
  const auto lacks = [](auto member, const char* name) {
    balora::KernelTable table = full_table();
    table.*member = nullptr;
    CHECK_MESSAGE(verdict(table) == std::string("has no ") + name + kRebuild, name);
  };
#define LACKS(name) lacks(&balora::KernelTable::name, #name)
  LACKS(create_state), LACKS(destroy_state), LACKS(allocate), LACKS(release), LACKS(upload);
  LACKS(download);
#define KERNEL(name) LACKS(name);
#include "kernels/kernels.def"
#undef LACKS
}

TEST_CASE("a device that was compiled before a code of an op was appended is refused by name") {
  const balora_known_codes own = BALORA_KNOWN_CODES;
  const auto lacks = [&](auto member, const std::string& name) {
    balora::KernelTable table = full_table();
    table.codes.*member -= 1;
    CHECK(verdict(table) == "knows " + std::to_string(own.*member - 1) + " " + name +
                                ", this build of balora has " + std::to_string(own.*member) +
                                kRebuild);
  };
  lacks(&balora_known_codes::binary_ops, "binary ops");
  lacks(&balora_known_codes::compare_ops, "comparisons");
  lacks(&balora_known_codes::unary_ops, "unary ops");
  lacks(&balora_known_codes::reduce_ops, "reductions");
  lacks(&balora_known_codes::activations, "activations");
  lacks(&balora_known_codes::reductions, "reductions of a loss");
  lacks(&balora_known_codes::norm_kinds, "norms");
  balora::KernelTable newer = full_table();
  newer.codes.unary_ops += 1;
  CHECK(verdict(newer) == "");
}

TEST_CASE("a device has all functions of a group or none of them") {
  using Table = balora::KernelTable;
  const auto lacks = [](const char* present, auto member, const char* name) {
    Table table = full_table();
    table.*member = nullptr;
    CHECK(verdict(table) == std::string("has ") + present + ", but no " + name + kRebuild);
  };
  lacks("unpin", &Table::pin, "pin");
  lacks("pin", &Table::unpin, "unpin");
  lacks("pin", &Table::copy_in, "copy_in");
  lacks("pin", &Table::copy_out, "copy_out");
  lacks("pin", &Table::mark, "mark");
  lacks("pin", &Table::reached, "reached");
  lacks("pin", &Table::await_mark, "await_mark");
  lacks("pin", &Table::unmark, "unmark");
  lacks("elapsed", &Table::record, "record");
  lacks("record", &Table::elapsed, "elapsed");
  lacks("capture_end", &Table::capture_begin, "capture_begin");
  lacks("capture_begin", &Table::capture_end, "capture_end");
  lacks("capture_begin", &Table::graph_launch, "graph_launch");
  lacks("capture_begin", &Table::graph_destroy, "graph_destroy");
  // Without pinned memory and marks.
  Table table = full_table();
  table.pin = nullptr, table.unpin = nullptr, table.copy_in = nullptr, table.copy_out = nullptr;
  table.mark = nullptr, table.reached = nullptr, table.await_mark = nullptr;
  table.unmark = nullptr;
  CHECK(verdict(table) == "has record, but no unmark" + kRebuild);  // marks are given back by it
  table.record = nullptr, table.elapsed = nullptr;
  CHECK(verdict(table) == "");
  table.capture_begin = nullptr, table.capture_end = nullptr;
  table.graph_launch = nullptr, table.graph_destroy = nullptr;
  table.discard = nullptr, table.synchronize = nullptr, table.describe = nullptr;
  table.memory = nullptr;
  CHECK(verdict(table) == "");
}
