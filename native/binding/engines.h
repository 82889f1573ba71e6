// The engines of one environment, one a device, made when a device is first asked for, and the
// settings that all of them share. "cpu" is always there; "cuda" (the same as "cuda:0") and
// "cuda:1" come out of a plug-in (kernels/device_plugin.h).
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace balora::binding {

class Engines {
 public:
  // The value of a variable of the process's environment; empty: it is not set.
  using ReadVariable = std::function<std::string(const std::string& name)>;
  explicit Engines(ReadVariable read_variable);

  // Throws UnsupportedError for a device that is not known, or cannot be had.
  Engine& get(const std::string& device);
  Engine& cpu() { return *engines_.at("cpu"); }

  // Where new tensors are made; the name before.
  Engine& current() { return *current_; }
  std::string set_current(const std::string& device);

  std::vector<Engine*> all() const;  // that have been made
  EnqueueState& state() { return *state_; }
  int64_t live_bytes() const;

  // Settings of every engine, those made later too.
  void set_num_threads(int threads);
  int num_threads() { return cpu().num_threads(); }
  bool set_deterministic(bool value);  // the value before
  bool set_allow_tf32(bool value);
  bool set_debug(bool value);
  std::string set_memory_tag(const std::string& name);
  std::string set_phase(const std::string& name);

  // Waits for all of them; throws the failure that says most.
  void sync();
  void refuse_recording() const;  // throws ArgumentError while an engine records a graph
  // Drops what is queued and returns when no kernel runs any more.
  void abandon();

 private:
  void apply_settings(Engine& engine) const;

  ReadVariable read_variable_;
  std::shared_ptr<EnqueueState> state_ = std::make_shared<EnqueueState>();
  int num_threads_ = 0;
  bool deterministic_ = false, allow_tf32_ = false;
  std::string memory_tag_ = "default", phase_;
  std::map<std::string, std::unique_ptr<Engine>> engines_;
  Engine* current_;
};

// Whether `one` should be reported rather than `other` (null: none yet).
inline bool says_more(const Failure& one, const Failure* other) {
  return !other || (other->consequence && !one.consequence);
}

}  // namespace balora::binding
