#include "binding/engines.h"

#include <algorithm>
#include <filesystem>
#include <future>
#include <optional>
#include <utility>

#include "engine/graph.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/device_plugin.h"
#include "platform/platform.h"

namespace balora::binding {
namespace {

struct DeviceName {
  std::string family;
  int index;
};

// "cpu", "cuda" or "cuda:N".
DeviceName parse_device(const std::string& device) {
  static const std::string kCuda = "cuda";
  if (device == "cpu") return {device, 0};
  if (device == kCuda) return {kCuda, 0};
  const std::string digits =
      device.starts_with(kCuda + ":") ? device.substr(kCuda.size() + 1) : std::string();
  const bool number = !digits.empty() && digits.size() <= 3 &&
                      std::all_of(digits.begin(), digits.end(),
                                  [](unsigned char c) { return c >= '0' && c <= '9'; });
  if (number) return {kCuda, std::stoi(digits)};
  throw UnsupportedError(
      concat("device \"", device, "\" is not known (known: cpu, cuda, cuda:0, cuda:1 and so on)"));
}

std::string addon_folder() {
  const std::string own = platform::library_of(reinterpret_cast<const void*>(&addon_folder));
  return own.empty() ? "." : std::filesystem::absolute(own).parent_path().string();
}

}  // namespace

Engines::Engines(ReadVariable read_variable) : read_variable_(std::move(read_variable)) {
  EngineOptions options;
  options.state = state_;
  engines_["cpu"] = std::make_unique<Engine>(cpu_kernel_table(), options);
  current_ = engines_["cpu"].get();
}

Engine& Engines::get(const std::string& device) {
  const DeviceName name = parse_device(device);
  const std::string key =
      name.family == "cpu" ? name.family : name.family + ":" + std::to_string(name.index);
  const auto found = engines_.find(key);
  if (found != engines_.end()) return *found->second;
  EngineOptions options;
  options.state = state_;
  options.num_threads = num_threads_;
  options.device_index = name.index;
  const PluginPlaces places{.folder = addon_folder(),
                            .given = read_variable_(plugin_variable(name.family))};
  auto engine = std::make_unique<Engine>(load_device_plugin(name.family, places), options);
  apply_settings(*engine);
  return *(engines_[key] = std::move(engine));
}

void Engines::apply_settings(Engine& engine) const {
  engine.memory_tag = engine.allocator().tag(memory_tag_);
  engine.phase = engine.op_times().phase(phase_);
  engine.set_deterministic(deterministic_);
  engine.set_allow_tf32(allow_tf32_);
  engine.set_debug(state_->debug);
}

std::string Engines::set_current(const std::string& device) {
  Engine& wanted = get(device);
  return std::exchange(current_, &wanted)->device();
}

std::vector<Engine*> Engines::all() const {
  std::vector<Engine*> list;
  for (const auto& [name, engine] : engines_) list.push_back(engine.get());
  return list;
}

int64_t Engines::live_bytes() const {
  int64_t bytes = 0;
  for (Engine* engine : all()) bytes += engine->allocator().stats().live_bytes;
  return bytes;
}

void Engines::set_num_threads(int threads) {
  for (Engine* engine : all()) engine->set_num_threads(threads);
  num_threads_ = threads;
}

bool Engines::set_deterministic(bool value) {
  for (Engine* engine : all()) engine->set_deterministic(value);
  return std::exchange(deterministic_, value);
}

bool Engines::set_allow_tf32(bool value) {
  for (Engine* engine : all()) engine->set_allow_tf32(value);
  return std::exchange(allow_tf32_, value);
}

bool Engines::set_debug(bool value) {
  for (Engine* engine : all()) engine->set_debug(value);
  return std::exchange(state_->debug, value);
}

std::string Engines::set_memory_tag(const std::string& name) {
  for (Engine* engine : all()) engine->memory_tag = engine->allocator().tag(name);
  return std::exchange(memory_tag_, name);
}

std::string Engines::set_phase(const std::string& name) {
  for (Engine* engine : all()) engine->phase = engine->op_times().phase(name);
  return std::exchange(phase_, name);
}

void Engines::sync() {
  refuse_recording();
  std::vector<std::future<std::optional<Failure>>> results;
  for (Engine* engine : all()) {
    auto done = std::make_shared<std::promise<std::optional<Failure>>>();
    results.push_back(done->get_future());
    engine->stream().enqueue_marker([done](const Failure* failure) {
      done->set_value(failure ? std::optional<Failure>(*failure) : std::nullopt);
    });
  }
  std::optional<Failure> worst;
  for (auto& result : results) {
    const std::optional<Failure> failure = result.get();
    if (failure && says_more(*failure, worst ? &*worst : nullptr)) worst = failure;
  }
  if (worst) throw StreamError(*worst);
}

void Engines::refuse_recording() const {
  for (const Engine* engine : all()) refuse_while_recording(*engine, "waiting for a device");
}

void Engines::abandon() {
  for (Engine* engine : all()) {
    engine->recording = nullptr;
    engine->stream().abandon();
  }
  try {
    sync();
  } catch (const std::exception&) {  // that work was dropped is what was asked for
  }
}

}  // namespace balora::binding
