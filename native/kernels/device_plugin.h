// Finds the kernel tables of devices that are libraries of their own, loaded when a device is first
// asked for: the path in BALORA_<FAMILY>_PLUGIN, else `balora_<family>.so` beside the addon, else
// in the folder <family> beside the addon's, where a clone builds it. Such a library exports one C
// function, `const balora_kernel_table* balora_device_table(void)`, and stays mapped for the rest
// of the process. Whatever is wrong with it is an UnsupportedError that says what was looked for,
// where, and what was found there; nothing falls back to another device.
#pragma once
#include <string>

#include "kernels/kernel_table.h"

namespace balora {

// The environment variable with the path of a family's plug-in.
std::string plugin_variable(const std::string& family);

struct PluginPlaces {
  std::string folder;  // the addon's
  std::string given;   // the value of the variable; empty: it is not set
};
// `family` is a device's name without its number ("cuda").
const KernelTable* load_device_plugin(const std::string& family, const PluginPlaces& places);

// Throws UnsupportedError for a table that this build cannot use: another ABI or size (nothing else
// is read of such a table), another device, fewer codes of ops than this build has, a function that
// every device needs or a kernel that is missing, a part of the functions that go together. `path`
// names the library.
void check_device_table(const KernelTable* table, const std::string& family,
                        const std::string& path);

}  // namespace balora
