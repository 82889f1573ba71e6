// Tensors, the tape and the engine as JS sees them: making, reading, disposing, backward, settings,
// statistics.
#include "binding/bind.h"
#include "engine/launch.h"
#include "ops/ops.h"
#include "tape/tape.h"

namespace balora::binding {
namespace {

Tensor from_bytes(Engine& engine, Napi::Uint8Array bytes, Shape shape, DType dtype) {
  check_extents(shape, dtype);
  const int64_t expected = shape.numel() * dtype_size(dtype);
  if (static_cast<int64_t>(bytes.ByteLength()) != expected) {
    throw ArgumentError(concat("tensor: the shape ", shape.to_string(), " of ", dtype_name(dtype),
                               " needs ", expected, " bytes, the data has ", bytes.ByteLength()));
  }
  return upload(engine, shape, dtype, bytes.Data());
}

void start_read(const Tensor& t, Napi::Uint8Array into) {
  if (static_cast<int64_t>(into.ByteLength()) != t.bytes()) {
    throw ArgumentError(
        concat("read: the buffer has ", into.ByteLength(), " bytes, the tensor ", t.bytes()));
  }
  download(contiguous(t.detach()), into.Data());
}

Napi::Promise read(Env& env, Tensor t, Napi::Uint8Array into) {
  start_read(t, into);
  return env.promise_after_stream(into).As<Napi::Promise>();
}

void read_sync(Env& env, Tensor t, Napi::Uint8Array into) {
  start_read(t, into);
  env.engine().stream().sync();
}

Napi::Promise synchronize(Env& env) {
  return env.promise_after_stream(Napi::Value()).As<Napi::Promise>();
}
void synchronize_sync(Engine& engine) {
  engine.stream().sync();
}

// Drops what is queued and returns when no kernel runs any more.
void abandon_work(Engine& engine) {
  engine.stream().abandon();
  try {
    engine.stream().sync();
  } catch (const std::exception&) {  // that work was dropped is what was asked for
  }
}

Shape shape_of(Tensor t) {
  return t.shape();
}
DType dtype_of(Tensor t) {
  return t.dtype();
}
std::string device_of(Tensor t) {
  return t.engine().device();
}
bool requires_grad(Tensor t) {
  return t.requires_grad();
}
bool is_leaf(Tensor t) {
  return t.is_leaf();
}
void set_requires_grad(Tensor t, bool value) {
  t.set_requires_grad(value);
}
Tensor grad_of(Tensor t) {
  return t.grad();
}
void set_grad(Tensor t, std::optional<Tensor> grad) {
  t.set_grad(grad ? grad->detach() : Tensor());
}
Tensor detach(Tensor t) {
  return t.detach();
}
void freeze(Tensor t) {
  t.freeze();
}
int64_t version_of(Tensor t) {
  return t.version();
}

bool dispose(Env& env, double handle) {
  return env.handles().dispose(static_cast<Handle>(handle));
}

void backward_from(std::vector<Tensor> roots, std::vector<std::optional<Tensor>> grads,
                   bool retain_graph) {
  std::vector<Tensor> plain(grads.size());
  for (size_t i = 0; i < grads.size(); ++i) plain[i] = grads[i].value_or(Tensor());
  backward(roots, plain, retain_graph);
}

bool set_grad_enabled(Engine& engine, bool value) {
  return std::exchange(engine.grad_enabled, value);
}
bool set_anomaly_mode(Engine& engine, bool value) {
  return std::exchange(engine.anomaly_mode, value);
}
void set_call_site(Engine& engine, std::string site) {
  engine.call_site = site.empty() ? nullptr : std::make_shared<const std::string>(std::move(site));
}
void set_num_threads(Engine& engine, int threads) {
  engine.set_num_threads(threads);
}
int64_t num_threads(Engine& engine) {
  return engine.num_threads();
}
int64_t set_memory_tag(Engine& engine, std::string name) {
  return std::exchange(engine.memory_tag, engine.allocator().tag(name));
}
void restore_memory_tag(Engine& engine, int tag) {
  engine.memory_tag = tag;
}
void set_memory_limit(Engine& engine, double bytes) {
  engine.allocator().set_limit(static_cast<int64_t>(bytes));
}
void reset_peak_memory(Engine& engine) {
  engine.allocator().reset_peak();
}
void trim_memory(Engine& engine) {
  engine.allocator().trim();
}

Napi::Value memory_stats(Env& env) {
  const MemoryStats stats = env.engine().allocator().stats();
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

int64_t set_phase(Engine& engine, std::string name) {
  return std::exchange(engine.phase, engine.op_times().phase(name));
}
void restore_phase(Engine& engine, int phase) {
  engine.phase = phase;
}
void reset_op_times(Engine& engine) {
  engine.op_times().reset();
}

Napi::Value op_times(Env& env) {
  const std::vector<OpTime> times = env.engine().op_times().read();
  auto list = Napi::Array::New(env.napi(), times.size());
  for (uint32_t i = 0; i < times.size(); ++i) {
    auto entry = Napi::Object::New(env.napi());
    entry.Set("phase", Napi::String::New(env.napi(), times[i].phase));
    entry.Set("op", Napi::String::New(env.napi(), times[i].op));
    entry.Set("calls", Napi::Number::New(env.napi(), static_cast<double>(times[i].calls)));
    entry.Set("seconds", Napi::Number::New(env.napi(), times[i].seconds));
    list.Set(i, entry);
  }
  return list;
}

// A node whose backward is a JS function: dy handles (0: unused) in, one handle or 0 per input out.
// The outputs are new tensors over the same values, now on the tape. The node takes the handles
// that backward returns.
std::vector<Tensor> custom_node(Env& env, std::string name, std::vector<Tensor> inputs,
                                std::vector<Tensor> outputs, Napi::Function backward_fn) {
  std::vector<Tensor> results;
  for (const Tensor& t : outputs) results.push_back(t.detach());
  const char* op = env.intern(name);
  auto callback = std::make_shared<Napi::FunctionReference>(Napi::Persistent(backward_fn));
  Env* self = &env;
  record(op, inputs, results,
         [self, op, callback, count = inputs.size()](std::span<const Tensor> dy, GradSink& sink) {
           Napi::Env napi(self->napi());
           Napi::HandleScope scope(napi);
           auto grads_in = Napi::Array::New(napi, dy.size());
           for (uint32_t i = 0; i < dy.size(); ++i) {
             const Handle handle = self->handles().add(dy[i]);
             grads_in.Set(i, Napi::Number::New(napi, static_cast<double>(handle)));
           }
           const Napi::Value result = callback->Call({grads_in});
           if (!result.IsArray() || result.As<Napi::Array>().Length() != count) {
             throw ArgumentError(concat(op,
                                        ": backward must return an array with one gradient (or "
                                        "null) for each of the ",
                                        count, " inputs"));
           }
           for (uint32_t i = 0; i < count; ++i) {
             const Napi::Value grad = result.As<Napi::Array>().Get(i);
             const double handle = grad.As<Napi::Number>().DoubleValue();
             if (handle == 0) continue;
             const Tensor gradient = self->handles().get(static_cast<Handle>(handle));
             self->handles().dispose(static_cast<Handle>(handle));
             sink.add(i, gradient);
           }
         });
  return results;
}

void set_error_factory(Env& env, Napi::Function factory) {
  env.set_error_factory(factory);
}

}  // namespace

void bind_core(Module& m) {
  op(m, "fromBytes", &from_bytes, {"bytes", "shape", "dtype"});
  op(m, "read", &read, {"x", "into"});
  op(m, "readSync", &read_sync, {"x", "into"});
  op(m, "synchronize", &synchronize, {});
  op(m, "synchronizeSync", &synchronize_sync, {});
  op(m, "abandonWork", &abandon_work, {});
  op(m, "shapeOf", &shape_of, {"x"});
  op(m, "dtypeOf", &dtype_of, {"x"});
  op(m, "deviceOf", &device_of, {"x"});
  op(m, "requiresGrad", &requires_grad, {"x"});
  op(m, "isLeaf", &is_leaf, {"x"});
  op(m, "setRequiresGrad", &set_requires_grad, {"x", "value"});
  op(m, "gradOf", &grad_of, {"x"});
  op(m, "setGrad", &set_grad, {"x", "grad"});
  op(m, "detach", &detach, {"x"});
  op(m, "cast", &cast, {"x", "dtype"}, Grad::kYes);
  op(m, "freeze", &freeze, {"x"});
  op(m, "versionOf", &version_of, {"x"});
  op(m, "dispose", &dispose, {"handle"});
  op(m, "backward", &backward_from, {"roots", "grads", "retainGraph"});
  op(m, "customNode", &custom_node, {"name", "inputs", "outputs", "backward"});
  op(m, "setGradEnabled", &set_grad_enabled, {"value"});
  op(m, "setAnomalyMode", &set_anomaly_mode, {"value"});
  op(m, "setCallSite", &set_call_site, {"site"});
  op(m, "setNumThreads", &set_num_threads, {"threads"});
  op(m, "numThreads", &num_threads, {});
  op(m, "setMemoryTag", &set_memory_tag, {"name"});
  op(m, "restoreMemoryTag", &restore_memory_tag, {"tag"});
  op(m, "setMemoryLimit", &set_memory_limit, {"bytes"});
  op(m, "resetPeakMemory", &reset_peak_memory, {});
  op(m, "trimMemory", &trim_memory, {});
  op(m, "memoryStats", &memory_stats, {});
  op(m, "setPhase", &set_phase, {"name"});
  op(m, "restorePhase", &restore_phase, {"phase"});
  op(m, "opTimes", &op_times, {});
  op(m, "resetOpTimes", &reset_op_times, {});
  op(m, "setErrorFactory", &set_error_factory, {"factory"});
}

}  // namespace balora::binding
