#include "binding/env.h"

#include <array>
#include <atomic>
#include <mutex>
#include <optional>
#include <string>

#include "platform/cpu.h"
#include "platform/environment.h"

namespace balora::binding {
namespace {

// A variable of process.env, which Node reads under the lock of its writers; nothing where it is
// not set, or the program has put something else in its place.
std::optional<std::string> environment_variable(napi_env env, const char* name) {
  const Napi::HandleScope scope(env);
  Napi::Value found = Napi::Env(env).Global();
  for (const char* part : {"process", "env", name}) {
    if (!found.IsObject()) return std::nullopt;
    found = property_of(found.As<Napi::Object>(), part);
  }
  if (!found.IsString()) return std::nullopt;
  return found.As<Napi::String>().Utf8Value();
}

// Distinguishes environments in handles. The only thing the process shares, and it only counts.
std::atomic<uint32_t> environments{0};

}  // namespace

Handle HandleTable::add(const Tensor& tensor) {
  if (!tensor.defined()) return 0;
  if (new_) new_->handles_.push_back(0);  // what may throw comes first
  uint32_t index;
  if (!free_.empty()) {
    index = free_.back();
    free_.pop_back();
  } else {
    if (slots_.size() == (size_t{1} << kSlotBits)) {
      throw NativeError("too many live tensors (16 million); free some with scope() or dispose()");
    }
    index = static_cast<uint32_t>(slots_.size());
    slots_.emplace_back();
  }
  Slot& slot = slots_[index];
  slot.tensor = tensor;
  slot.generation = (slot.generation + 1) & ((1u << kGenerationBits) - 1);
  if (slot.generation == 0) slot.generation = 1;
  ++live_;
  const Handle tag = static_cast<Handle>(env_tag_ & ((1u << kTagBits) - 1));
  const Handle handle = tag << (kSlotBits + kGenerationBits) |
                        static_cast<Handle>(slot.generation) << kSlotBits |
                        static_cast<Handle>(index);
  if (new_) new_->handles_.back() = handle;
  return handle;
}

size_t HandleTable::slot_of(Handle handle) const {
  const auto index = static_cast<size_t>(handle & ((1 << kSlotBits) - 1));
  const auto generation =
      static_cast<uint32_t>((handle >> kSlotBits) & ((1 << kGenerationBits) - 1));
  const auto tag = static_cast<uint32_t>(handle >> (kSlotBits + kGenerationBits));
  if (handle <= 0 || tag != (env_tag_ & ((1u << kTagBits) - 1))) {
    throw ArgumentError(
        "a tensor of another thread (or no tensor) was given; tensors stay in the "
        "thread that made them");
  }
  if (index >= slots_.size() || slots_[index].generation != generation ||
      !slots_[index].tensor.defined()) {
    throw ArgumentError(
        "a tensor was used after it was disposed (by dispose(), or at the end of "
        "the scope() that made it)");
  }
  return index;
}

const Tensor& HandleTable::get(Handle handle) const {
  return slots_[slot_of(handle)].tensor;
}

bool HandleTable::dispose(Handle handle) {
  size_t index;
  try {
    index = slot_of(handle);
  } catch (const ArgumentError&) {
    return false;
  }
  const Tensor dying = std::move(slots_[index].tensor);  // freed after the slot is consistent again
  slots_[index].tensor = Tensor();
  free_.push_back(static_cast<uint32_t>(index));
  --live_;
  return true;
}

void HandleTable::clear() {
  std::vector<Slot> dying;
  dying.swap(slots_);
  free_.clear();
  live_ = 0;
}

// One promise and the streams it waits for. The last stream to arrive hands it to JS.
struct Env::Completion {
  Env* env;
  napi_deferred deferred;
  napi_ref keep = nullptr;
  std::atomic<size_t> waiting;
  std::mutex mutex;
  std::unique_ptr<Failure> failure;

  // `one`: the stream's failure, or null.
  void arrive(napi_threadsafe_function queue, const Failure* one = nullptr) {
    if (one) {
      std::lock_guard lock(mutex);
      if (says_more(*one, failure.get())) failure = std::make_unique<Failure>(*one);
    }
    if (--waiting > 0) return;
    if (napi_call_threadsafe_function(queue, this, napi_tsfn_nonblocking) != napi_ok) {
      delete this;  // the environment is going away
    }
  }
};

Env::Env(Napi::Env env) : env_(env), handles_(environments.fetch_add(1) + 1) {
  const auto read = [env](const char* name) { return environment_variable(env, name); };
  keep_variables(read);
  platform::cpu();  // asked here, which is when the addon is loaded
  engines_ = std::make_unique<Engines>(
      [read](const std::string& name) { return read(name.c_str()).value_or(""); });
  const Napi::String name = Napi::String::New(env, "balora");
  const napi_status status = napi_create_threadsafe_function(
      env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, this, &Env::settle, &settle_queue_);
  if (status != napi_ok) throw NativeError("cannot create the promise queue");
  napi_unref_threadsafe_function(env, settle_queue_);
  napi_add_env_cleanup_hook(env, [](void* self) { static_cast<Env*>(self)->shut_down(); }, this);
}

Env::~Env() {
  shut_down();
  for (const auto& destroy : owned_) destroy();
}

void Env::shut_down() {
  if (!engines_) return;
  engines_->abandon();
  handles_.clear();
  engines_.reset();
  error_factory_.Reset();
  napi_release_threadsafe_function(settle_queue_, napi_tsfn_abort);
}

std::pair<Env::Completion*, Napi::Promise> Env::new_completion(size_t waiting, Napi::Value keep) {
  auto completion = std::make_unique<Completion>();
  completion->env = this;
  completion->waiting = waiting;
  napi_value promise = nullptr;
  if ((!keep.IsEmpty() && napi_create_reference(env_, keep, 1, &completion->keep) != napi_ok) ||
      napi_create_promise(env_, &completion->deferred, &promise) != napi_ok) {
    if (completion->keep) napi_delete_reference(env_, completion->keep);
    throw NativeError("cannot create a promise");
  }
  if (pending_++ == 0) napi_ref_threadsafe_function(env_, settle_queue_);
  return {completion.release(), Napi::Promise(env_, promise)};
}

Napi::Promise Env::promise_after(const std::vector<Engine*>& engines, Napi::Value keep) {
  engines_->refuse_recording();
  try {
    const auto [completion, promise] = new_completion(engines.size(), keep);
    for (Engine* engine : engines) {
      engine->stream().enqueue_marker(
          [completion = completion, queue = settle_queue_](const Failure* failure) {
            completion->arrive(queue, failure);
          });
    }
    return promise;
  } catch (const Error&) {
    for (Engine* engine : engines) {  // an op may be writing to `keep`
      try {
        engine->stream().sync();
      } catch (const Error&) {  // there is no promise to reject
      }
    }
    throw;
  }
}

Napi::Promise Env::promise_of(Engine& engine, const std::function<void()>& op) {
  try {
    const auto [completion, promise] = new_completion(1, Napi::Value());
    engine.stream().enqueue_always([op, completion = completion, queue = settle_queue_] {
      op();
      completion->arrive(queue);
    });
    return promise;
  } catch (const Error&) {
    engine.stream().enqueue_always(op);
    throw;
  }
}

void Env::settle(napi_env env, napi_value, void*, void* data) {
  const std::unique_ptr<Completion> completion(static_cast<Completion*>(data));
  if (!env) return;  // torn down with calls still queued
  completion->env->guarded([&] {
    completion->env->settle(*completion);
    return nullptr;
  });
}

// In a worker that stops, all that touches JS fails here, and nobody waits for the promise.
void Env::settle(const Completion& completion) {
  const Napi::HandleScope scope(env_);
  if (--pending_ == 0) napi_unref_threadsafe_function(env_, settle_queue_);
  if (completion.keep) napi_delete_reference(env_, completion.keep);
  adjust_external_memory();
  if (completion.failure) {
    const auto& [code, message, consequence] = *completion.failure;
    napi_reject_deferred(env_, completion.deferred, make_error(code, message));
  } else {
    napi_value undefined = nullptr;
    napi_get_undefined(env_, &undefined);
    napi_resolve_deferred(env_, completion.deferred, undefined);
  }
}

void Env::adjust_external_memory() {
  const int64_t live = engines_ ? engines_->live_bytes() : 0;
  int64_t total = 0;
  napi_adjust_external_memory(env_, live - reported_external_, &total);
  reported_external_ = live;
}

napi_value Env::make_error(const std::string& code, const std::string& message,
                           const std::string& path, int64_t offset) {
  const Napi::Env env(env_);
  const Napi::String code_text = Napi::String::New(env, code);
  const Napi::String message_text = Napi::String::New(env, message);
  if (!error_factory_.IsEmpty()) {
    const Napi::Value at = path.empty() ? env.Undefined() : Napi::String::New(env, path);
    const Napi::Value offset_there =
        offset < 0 ? env.Undefined() : Napi::Number::New(env, static_cast<double>(offset));
    try {
      return call_js(env_, error_factory_.Value(),
                     std::array<napi_value, 4>{code_text, message_text, at, offset_there});
    } catch (const JsException&) {  // JS may not run, or has no stack left: an error without it
      napi_value lost = nullptr;
      napi_get_and_clear_last_exception(env_, &lost);
    }
  }
  napi_value error = nullptr;
  check_js(env_, napi_create_error(env_, code_text, message_text, &error));
  return error;
}

napi_value Env::error_for(const std::exception& error) {
  if (const auto* format = dynamic_cast<const FormatError*>(&error)) {
    return make_error(format->code(), format->what(), format->path(), format->offset());
  }
  if (const auto* stream = dynamic_cast<const StreamError*>(&error)) {
    return make_error(stream->failure_code(), stream->what());
  }
  return make_error(code_of(error), message_of(error));
}

// The statuses are nothing to anybody: a throw fails where JS may not run, and only there.
void Env::throw_in_js() noexcept {
  try {
    try {
      throw;
    } catch (const JsException&) {  // waits there already
    } catch (const Napi::Error& error) {
      napi_throw(env_, error.Value());
    } catch (const std::exception& error) {
      napi_throw(env_, error_for(error));
    }
  } catch (...) {
    napi_throw_error(env_, "ERR_NATIVE", "a call failed, and no error could be made to say why");
  }
}

}  // namespace balora::binding
