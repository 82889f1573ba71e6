// Tensors and the tape as JS sees them: making, reading, disposing, backward. The settings and
// statistics of engines are in bind_runtime.cc.
#include <array>
#include <exception>

#include "binding/bind.h"
#include "engine/launch.h"
#include "kernels/shared/int8_rows.h"
#include "ops/ops.h"
#include "tape/tape.h"

namespace balora::binding {
namespace {

Tensor from_bytes(Engine& engine, Napi::Uint8Array bytes, Shape shape, DType dtype) {
  const int64_t expected = bytes_of(shape, dtype);
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

// Calls that may throw come first: a write to `into` that is on its way needs a promise that
// keeps it.
Napi::Promise read(Env& env, Tensor t, Napi::Uint8Array into) {
  env.engines().refuse_recording();
  start_read(t, into);
  return env.promise_after({&t.engine()}, into);
}

void read_sync(Tensor t, Napi::Uint8Array into) {
  start_read(t, into);
  t.engine().stream().sync();
}

// device '': all of them.
Napi::Promise synchronize(Env& env, std::string device) {
  if (device.empty()) return env.promise_after(env.engines().all(), Napi::Value());
  return env.promise_after({&env.engines().get(device)}, Napi::Value());
}
void synchronize_sync(Env& env, std::string device) {
  if (device.empty()) return env.engines().sync();
  env.engines().refuse_recording();
  env.engines().get(device).stream().sync();
}

void abandon_work(Env& env) {
  env.engines().abandon();
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
int64_t grad_count_of(Tensor t) {
  return t.impl()->grad_count;
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

bool dispose(Env& env, Handle handle) {
  return env.handles().dispose(handle);
}

void backward_from(std::vector<Tensor> roots, std::vector<std::optional<Tensor>> grads,
                   bool retain_graph) {
  std::vector<Tensor> plain(grads.size());
  for (size_t i = 0; i < grads.size(); ++i) plain[i] = grads[i].value_or(Tensor());
  backward(roots, plain, retain_graph);
}

bool set_grad_enabled(Env& env, bool value) {
  return std::exchange(env.engines().state().grad_enabled, value);
}
bool set_batch_invariant(Env& env, bool value) {
  return std::exchange(env.engines().state().batch_invariant, value);
}
int64_t set_int8_products(Env& env, int value) {
  return std::exchange(env.engines().state().int8_products, value);
}
int64_t int8_most_terms(Env&) {
  return kInt8MostTerms;
}
int64_t int8_products(Env& env) {
  return env.engines().state().int8_products;
}
bool set_recompute(Env& env, bool value) {
  return std::exchange(env.engines().state().recompute, value);
}
bool set_recompute_products(Env& env, bool value) {
  return std::exchange(env.engines().state().recompute_products, value);
}
bool set_anomaly_mode(Env& env, bool value) {
  return std::exchange(env.engines().state().anomaly_mode, value);
}
void set_call_site(Env& env, std::string site) {
  env.engines().state().call_site =
      site.empty() ? nullptr : std::make_shared<const std::string>(std::move(site));
}

// Calls a custom op's backward with arrays of handles of dy (0: unused) and of the saved values.
// These are the function's own; where it throws, maybe before its first line, they are released.
Napi::Value call_backward(Env& env, const Napi::FunctionReference& function,
                          std::span<const Tensor> dy, const std::vector<Tensor>& saved) {
  using Tensors = Result<std::vector<Tensor>>;
  NewHandles given(env.handles());
  const std::array<napi_value, 2> arguments{Tensors::to(env, {dy.begin(), dy.end()}),
                                            Tensors::to(env, saved)};
  given.stop();
  const napi_value result = call_js(env.napi(), function.Value(), arguments);
  given.deliver();
  return {env.napi(), result};
}

// The gradients that a custom op's backward returned, undefined where there is none. Their handles
// are released, also beside an element that is refused.
std::vector<Tensor> returned_gradients(Env& env, const Napi::Value& returned) {
  if (!returned.IsArray()) return {};
  const auto array = returned.As<Napi::Array>();
  std::vector<Handle> handles;
  std::exception_ptr refused;
  const auto release = [&] {
    for (const Handle handle : handles) env.handles().dispose(handle);
  };
  std::vector<Tensor> gradients;
  try {
    for (uint32_t i = 0; i < array.Length(); ++i) {
      const Napi::Value element = element_of(array, i);
      try {
        handles.push_back(integer_of(element, "a tensor"));
      } catch (const ArgumentError&) {
        if (!refused) refused = std::current_exception();
      }
    }
    if (refused) std::rethrow_exception(refused);
    for (const Handle handle : handles) {
      gradients.push_back(handle == 0 ? Tensor() : env.handles().get(handle));
    }
  } catch (...) {
    release();
    throw;
  }
  release();
  return gradients;
}

// The values that a custom op's forward saved; its name stands in the error for one overwritten.
std::vector<Tensor> saved_values(const char* op, std::span<const Saved> saved) {
  std::vector<Tensor> values;
  try {
    for (const Saved& one : saved) values.push_back(one.get());
  } catch (const ArgumentError& error) {
    throw ArgumentError(concat(op, ": ", error.what()));
  }
  return values;
}

// A node whose backward is a JS function: handles of dy (0: unused) and of what forward saved in,
// one handle or 0 per input out. The node owns the saved values, so they go with the graph; the
// function owns the handles that it is given, the node those that it returns. The outputs are new
// tensors over the same values, now on the tape.
std::vector<Tensor> custom_node(Env& env, std::string name, std::vector<Tensor> inputs,
                                std::vector<Tensor> outputs, std::vector<Tensor> saved,
                                Napi::Function backward_fn) {
  std::vector<Tensor> results;
  for (const Tensor& t : outputs) results.push_back(t.detach());
  const char* op = env.intern(name);
  auto callback = std::make_shared<Napi::FunctionReference>(Napi::Persistent(backward_fn));
  std::vector<Saved> kept(saved.begin(), saved.end());
  Env* self = &env;
  record(op, inputs, results,
         [self, op, callback, count = inputs.size(), kept = std::move(kept)](
             std::span<const Tensor> dy, GradSink& sink) {
           Napi::Env napi(self->napi());
           Napi::HandleScope scope(napi);
           const std::vector<Tensor> values = saved_values(op, kept);
           const std::vector<Tensor> gradients =
               returned_gradients(*self, call_backward(*self, *callback, dy, values));
           if (gradients.size() != count) {
             throw ArgumentError(concat(op,
                                        ": backward must return an array with one gradient (or "
                                        "null) for each of the ",
                                        count, " inputs"));
           }
           for (size_t i = 0; i < count; ++i) sink.add(i, gradients[i]);
         });
  return results;
}

void set_error_factory(Env& env, Napi::Function factory) {
  env.set_error_factory(factory);
}

Tensor move_to(Env& env, Tensor x, std::string device) {
  return to_device(x, env.engines().get(device));
}

}  // namespace

void bind_core(Module& m) {
  op(m, "fromBytes", &from_bytes, {"bytes", "shape", "dtype"});
  op(m, "read", &read, {"x", "into"});
  op(m, "readSync", &read_sync, {"x", "into"});
  op(m, "synchronize", &synchronize, {"device"});
  op(m, "synchronizeSync", &synchronize_sync, {"device"});
  op(m, "abandonWork", &abandon_work, {});
  op(m, "shapeOf", &shape_of, {"x"});
  op(m, "dtypeOf", &dtype_of, {"x"});
  op(m, "deviceOf", &device_of, {"x"});
  op(m, "requiresGrad", &requires_grad, {"x"});
  op(m, "isLeaf", &is_leaf, {"x"});
  op(m, "setRequiresGrad", &set_requires_grad, {"x", "value"});
  op(m, "gradOf", &grad_of, {"x"});
  op(m, "gradCountOf", &grad_count_of, {"x"});
  op(m, "setGrad", &set_grad, {"x", "grad"});
  op(m, "detach", &detach, {"x"});
  op(m, "toDevice", &move_to, {"x", "device"}, Grad::kYes);
  op(m, "freeze", &freeze, {"x"});
  op(m, "versionOf", &version_of, {"x"});
  op(m, "dispose", &dispose, {"handle"});
  op(m, "backward", &backward_from, {"roots", "grads", "retainGraph"});
  op(m, "customNode", &custom_node, {"name", "inputs", "outputs", "saved", "backward"});
  op(m, "setGradEnabled", &set_grad_enabled, {"value"});
  op(m, "setBatchInvariant", &set_batch_invariant, {"value"});
  op(m, "setInt8Products", &set_int8_products, {"value"});
  op(m, "int8MostTerms", &int8_most_terms, {});
  op(m, "int8Products", &int8_products, {});
  op(m, "setRecompute", &set_recompute, {"value"});
  op(m, "setRecomputeProducts", &set_recompute_products, {"value"});
  op(m, "setAnomalyMode", &set_anomaly_mode, {"value"});
  op(m, "setCallSite", &set_call_site, {"site"});
  op(m, "setErrorFactory", &set_error_factory, {"factory"});
}

}  // namespace balora::binding
