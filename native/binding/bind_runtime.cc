// The engines of an environment as JS sees them: devices, settings, memory, and where time goes.
#include <atomic>
#include <optional>
#include <set>
#include <vector>

#include "binding/bind.h"
#include "binding/file_boxes.h"
#include "kernels/cpu/products/int8_block.h"
#include "kernels/cpu/runtime/implementation.h"
#include "platform/cpu.h"
#include "platform/platform.h"

namespace balora::binding {
namespace {

std::string set_device(Env& env, std::string device) {
  return env.engines().set_current(device);
}
std::string current_device(Env& env) {
  return env.engine().device();
}

// {op: names of what can run it, the first that takes the operands does}
Napi::Object implementations(Env& env) {
  auto lists = Napi::Object::New(env.napi());
  for (const ImplementationList& list : cpu_implementations()) {
    auto names = Napi::Array::New(env.napi());
    for (const auto& [name, needs] : list.entries) {
      if (platform::cpu().uses(needs))
        names.Set(names.Length(), Napi::String::New(env.napi(), name));
    }
    lists.Set(list.name, names);
  }
  return lists;
}

// {device, description, instructions, int8, implementations, freeBytes, totalBytes}
Napi::Value device_info(Env& env, std::string device) {
  const Engine& engine = env.engines().get(device);
  const auto [free_bytes, total_bytes] = engine.device_memory();
  auto object = Napi::Object::New(env.napi());
  object.Set("device", Napi::String::New(env.napi(), engine.device()));
  object.Set("description", Napi::String::New(env.napi(), engine.description()));
  const bool cpu = std::string_view(engine.device()) == "cpu";
  object.Set("instructions", Napi::String::New(env.napi(), cpu ? platform::cpu().level : ""));
  object.Set("int8", Napi::String::New(env.napi(), cpu ? int8_core().name : ""));
  object.Set("implementations", cpu ? implementations(env) : Napi::Object::New(env.napi()));
  object.Set("freeBytes", Napi::Number::New(env.napi(), static_cast<double>(free_bytes)));
  object.Set("totalBytes", Napi::Number::New(env.napi(), static_cast<double>(total_bytes)));
  return object;
}

void set_num_threads(Env& env, int threads) {
  env.engines().set_num_threads(threads);
}
int64_t num_threads(Env& env) {
  return env.engines().num_threads();
}
bool set_deterministic(Env& env, bool value) {
  return env.engines().set_deterministic(value);
}
bool set_allow_tf32(Env& env, bool value) {
  return env.engines().set_allow_tf32(value);
}
bool set_debug(Env& env, bool value) {
  return env.engines().set_debug(value);
}
bool set_profiling(Env& env, bool value) {
  return std::exchange(env.engines().state().profiling, value);
}
std::string set_memory_tag(Env& env, std::string name) {
  return env.engines().set_memory_tag(name);
}
std::string set_phase(Env& env, std::string name) {
  return env.engines().set_phase(name);
}

// A flag that JS sets when nobody wants what the ops under it compute.
using AbortBox = Box<std::atomic<bool>>;

Napi::Value new_abort(Env& env) {
  return wrap(env, AbortBox{std::make_shared<std::atomic<bool>>(false)});
}
void set_abort(Env& env, std::optional<AbortBox*> box) {
  env.engines().state().abort = box ? (*box)->get() : nullptr;
}
void abort_ops(AbortBox* box) {
  box->get()->store(true, std::memory_order_relaxed);
}
// Declares, in stream order, that a tensor's values are those to go on with although an op that was
// to write a part of them was aborted: nobody will read that part.
void keep_aborted(Tensor t) {
  t.engine().stream().enqueue_always([storage = t.impl()->storage] {
    if (storage->has_data()) storage->set_aborted(false);
  });
}

// Throws FileChangedError where a file whose pages the tensors' values are was written to, without
// reading it. Once for each file, however many tensors lie in it.
void refuse_rewritten(std::vector<Tensor> tensors) {
  std::set<const ExternalMemory*> files;
  for (const Tensor& t : tensors) files.insert(t.impl()->storage->owner().get());
  files.erase(nullptr);
  for (const ExternalMemory* file : files) file->refuse_rewritten();
}

void set_memory_limit(Env& env, std::string device, double bytes) {
  env.engines().get(device).allocator().set_limit(bytes_of_limit("setMemoryLimit", bytes));
}
void reset_peak_memory(Env& env, std::string device) {
  env.engines().get(device).allocator().reset_peak();
}
void trim_memory(Env& env, std::string device) {
  env.engines().get(device).allocator().trim();
}

Napi::Value memory_stats(Env& env, std::string device) {
  const MemoryStats stats = env.engines().get(device).allocator().stats();
  auto object = Napi::Object::New(env.napi());
  const auto set = [&](const char* key, int64_t value) {
    object.Set(key, Napi::Number::New(env.napi(), static_cast<double>(value)));
  };
  set("liveBytes", stats.live_bytes);
  set("peakBytes", stats.peak_bytes);
  set("cachedBytes", stats.cached_bytes);
  set("derivedBytes", stats.derived_bytes);
  set("deviceAllocations", stats.allocations);
  set("liveTensors", env.handles().live());
  auto tags = Napi::Object::New(env.napi());
  for (const auto& [name, bytes] : stats.by_tag) {
    tags.Set(name, Napi::Number::New(env.napi(), static_cast<double>(bytes)));
  }
  object.Set("byTag", tags);
  return object;
}

double malloc_bytes(Env&) {
  return platform::malloc_bytes();
}

void reset_op_times(Env& env) {
  for (Engine* engine : env.engines().all()) engine->op_times().reset();
}

// {device, phase, op, implementation, calls, seconds}[]
Napi::Value op_times(Env& env) {
  auto list = Napi::Array::New(env.napi());
  for (Engine* engine : env.engines().all()) {
    for (const OpTime& time : engine->op_times().read()) {
      auto entry = Napi::Object::New(env.napi());
      entry.Set("device", Napi::String::New(env.napi(), engine->device()));
      entry.Set("phase", Napi::String::New(env.napi(), time.phase));
      entry.Set("op", Napi::String::New(env.napi(), time.op));
      entry.Set("implementation", Napi::String::New(env.napi(), time.implementation));
      entry.Set("calls", Napi::Number::New(env.napi(), static_cast<double>(time.calls)));
      entry.Set("seconds", Napi::Number::New(env.napi(), time.seconds));
      list.Set(list.Length(), entry);
    }
  }
  return list;
}

}  // namespace

void bind_runtime(Module& m) {
  op(m, "setDevice", &set_device, {"device"});
  op(m, "currentDevice", &current_device, {});
  op(m, "deviceInfo", &device_info, {"device"});
  op(m, "setNumThreads", &set_num_threads, {"threads"});
  op(m, "numThreads", &num_threads, {});
  op(m, "setDeterministic", &set_deterministic, {"value"});
  op(m, "setAllowTf32", &set_allow_tf32, {"value"});
  op(m, "setDebug", &set_debug, {"value"});
  op(m, "setProfiling", &set_profiling, {"value"});
  op(m, "setMemoryTag", &set_memory_tag, {"name"});
  op(m, "newAbort", &new_abort, {});
  op(m, "setAbort", &set_abort, {"abort"});
  op(m, "abortOps", &abort_ops, {"abort"});
  op(m, "keepAborted", &keep_aborted, {"x"});
  op(m, "refuseRewritten", &refuse_rewritten, {"tensors"});
  op(m, "setMemoryLimit", &set_memory_limit, {"device", "bytes"});
  op(m, "resetPeakMemory", &reset_peak_memory, {"device"});
  op(m, "trimMemory", &trim_memory, {"device"});
  op(m, "memoryStats", &memory_stats, {"device"});
  op(m, "mallocBytes", &malloc_bytes, {});
  op(m, "setPhase", &set_phase, {"name"});
  op(m, "opTimes", &op_times, {});
  op(m, "resetOpTimes", &reset_op_times, {});
}

}  // namespace balora::binding
