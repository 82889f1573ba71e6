#include "kernels/device_plugin.h"

#include <array>
#include <cctype>
#include <cstddef>
#include <filesystem>
#include <vector>

#include "platform/platform.h"
#include "tensor/errors.h"

namespace balora {
namespace {

constexpr const char* kEntry = "balora_device_table";

struct Location {
  std::string path;
  std::string beside;  // the other place that was looked at; empty: the path is the variable's
};

Location locate(const std::string& family, const PluginPlaces& places) {
  if (!places.given.empty()) return {places.given, ""};
  const std::filesystem::path own(places.folder);
  const std::string name = "balora_" + family + ".so";
  const std::string near = (own / name).string();
  const std::string built = (own.parent_path() / family / name).string();
  std::error_code ignored;
  const auto there = [&](const std::string& path) {
    return std::filesystem::exists(path, ignored);
  };
  return there(near) || !there(built) ? Location{near, built} : Location{built, near};
}

void require_file(const Location& at, const std::string& family) {
  std::error_code ignored;
  if (std::filesystem::is_regular_file(at.path, ignored)) return;
  const std::string variable = plugin_variable(family);
  const std::string found =
      std::filesystem::exists(at.path, ignored) ? "is not a file" : "is not there";
  throw UnsupportedError(
      concat("device \"", family, "\": its plug-in ", at.path, " ", found, " (",
             at.beside.empty() ? concat("the path in ", variable)
                               : concat("nor is ", at.beside, "; ", variable, " is not set"),
             "). Build it with \"npm run build:", family, "\", or set ", variable, " to its path"));
}

using Entry = const KernelTable* (*)();

Entry open_entry(const std::string& path, const std::string& family) {
  std::string why;
  void* const library = platform::open_library(path, &why);
  if (!library) {
    throw UnsupportedError(
        concat("device \"", family, "\": its plug-in ", path, " cannot be loaded: ", why));
  }
  const auto entry = reinterpret_cast<Entry>(platform::symbol(library, kEntry));
  if (entry) return entry;
  throw UnsupportedError(concat("device \"", family, "\": ", path, " is no plug-in of balora: it ",
                                "exports no function ", kEntry, "; set ", plugin_variable(family),
                                " to the path of one"));
}

struct Codes {
  const char* name;
  int32_t known, needed;
};

// Codes are appended without a new ABI: a device that was compiled before has fewer.
std::array<Codes, 7> known_codes(const balora_known_codes& device) {
  constexpr balora_known_codes kOwn = BALORA_KNOWN_CODES;
  static_assert(sizeof kOwn == 7 * sizeof(int32_t));
  return {{{"binary ops", device.binary_ops, kOwn.binary_ops},
           {"comparisons", device.compare_ops, kOwn.compare_ops},
           {"unary ops", device.unary_ops, kOwn.unary_ops},
           {"reductions", device.reduce_ops, kOwn.reduce_ops},
           {"activations", device.activations, kOwn.activations},
           {"reductions of a loss", device.reductions, kOwn.reductions},
           {"norms", device.norm_kinds, kOwn.norm_kinds}}};
}

struct Function {
  bool present;
  const char* name;
};
#define FUNCTION(name) {table.name != nullptr, #name}

// The first row or function that a device must have and this one has not; null: it has all.
const char* missing_function(const KernelTable& table) {
  const Function needed[] = {
      FUNCTION(create_state), FUNCTION(destroy_state), FUNCTION(allocate),
      FUNCTION(release),      FUNCTION(upload),        FUNCTION(download),
#define KERNEL(name) FUNCTION(name),
#include "kernels/kernels.def"
  };
  for (const auto& [present, name] : needed) {
    if (!present) return name;
  }
  return nullptr;
}

// A function that a device has, and another one that it therefore must have and has not: the engine
// asks for one function of a group, and calls them all where the device has it.
struct HalfGroup {
  const char* present = nullptr;
  const char* missing = nullptr;
};
HalfGroup incomplete_group(const KernelTable& table) {
  const std::vector<Function> groups[] = {
      {FUNCTION(pin), FUNCTION(unpin), FUNCTION(copy_in), FUNCTION(copy_out), FUNCTION(mark),
       FUNCTION(reached), FUNCTION(await_mark), FUNCTION(unmark)},
      {FUNCTION(record), FUNCTION(elapsed)},
      {FUNCTION(capture_begin), FUNCTION(capture_end), FUNCTION(graph_launch),
       FUNCTION(graph_destroy)}};
#undef FUNCTION
  for (const std::vector<Function>& group : groups) {
    HalfGroup found;
    for (const auto& [present, name] : group) {
      const char*& place = present ? found.present : found.missing;
      if (!place) place = name;
    }
    if (found.present && found.missing) return found;
  }
  if (table.record && !table.unmark) return {"record", "unmark"};
  return {};
}

// A table that does not fit may be shorter than this build's: these two alone are read of it, and
// stay where they are in every ABI.
static_assert(offsetof(KernelTable, abi) == 0 && offsetof(KernelTable, size) == sizeof(uint32_t));

}  // namespace

std::string plugin_variable(const std::string& family) {
  std::string variable = "BALORA_";
  for (const char c : family) {
    variable += static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  return variable + "_PLUGIN";
}

void check_device_table(const KernelTable* table, const std::string& family,
                        const std::string& path) {
  const auto refuse = [&](const std::string& what) {
    throw UnsupportedError(concat("device \"", family, "\": the plug-in ", path, " ", what));
  };
  const std::string rebuild =
      concat("; build it from the same source as the addon (\"npm run build:", family, "\")");
  if (!table) refuse(concat("gave no table from ", kEntry, rebuild));
  if (table->abi != BALORA_ABI) {
    refuse(concat("has ABI ", table->abi, ", this build of balora needs ", BALORA_ABI, rebuild));
  }
  if (table->size != sizeof(KernelTable)) {
    refuse(concat("has a table of ", table->size, " bytes, this build of balora needs ",
                  sizeof(KernelTable), rebuild));
  }
  if (!table->device || family != table->device) {
    refuse(concat("is for the device \"", table->device ? table->device : "", "\"; set ",
                  plugin_variable(family), " to the path of one for \"", family, "\""));
  }
  for (const auto& [name, known, needed] : known_codes(table->codes)) {
    if (known >= needed) continue;
    refuse(concat("knows ", known, " ", name, ", this build of balora has ", needed, rebuild));
  }
  if (const char* name = missing_function(*table)) refuse(concat("has no ", name, rebuild));
  const HalfGroup group = incomplete_group(*table);
  if (group.missing) refuse(concat("has ", group.present, ", but no ", group.missing, rebuild));
}

const KernelTable* load_device_plugin(const std::string& family, const PluginPlaces& places) {
  const Location at = locate(family, places);
  require_file(at, family);
  const KernelTable* table = open_entry(at.path, family)();
  check_device_table(table, family, at.path);
  return table;
}

}  // namespace balora
