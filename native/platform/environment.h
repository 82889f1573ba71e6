// The process's environment, read by this file alone. Another thread's setenv(), as Node makes of a
// write to process.env, may move what getenv() reads: so the addon takes over the variables below
// on the thread of JavaScript, from process.env, and every later question is answered from there.
#pragma once
#include <array>
#include <functional>
#include <optional>
#include <string>

namespace balora {

// Those that the engine, its kernels and its devices know.
inline constexpr std::array kVariables = {"BALORA_CUDA_LINEAR", "BALORA_CUDA_PANEL_BYTES",
                                          "BALORA_EMULATE_AMX", "BALORA_EXACT_BLOCKS",
                                          "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"};

// Takes the variables over, each from read(name); the first call of a process counts.
void keep_variables(const std::function<std::optional<std::string>(const char* name)>& read);

// One of kVariables, null where it is not set, as for every other name: kernels, whose frames are
// C's, ask by a pointer to this. Before keep_variables(), and in programs that do not call it (the
// C++ tests), the environment as it is.
const char* variable(const char* name) noexcept;

}  // namespace balora
