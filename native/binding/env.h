// The state of one Node environment (the main thread or a worker): its engines (engines.h), the
// table of tensors that JS holds by handle, and the queue that settles promises. Nothing here is
// shared between environments.
//
// A handle is a number: slot, generation and a tag of the environment. A disposed or foreign handle
// is recognised, so a stale use is a named error and never touches freed memory. No finalizer runs
// per tensor; lib/tensor.ts has the leak net.
#pragma once
#include <napi.h>

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "binding/engines.h"
#include "binding/js_boundary.h"
#include "tensor/tensor.h"

namespace balora::binding {

using Handle = int64_t;

class NewHandles;

class HandleTable {
 public:
  explicit HandleTable(uint32_t env_tag) : env_tag_(env_tag) {}
  Handle add(const Tensor& tensor);
  const Tensor& get(Handle handle) const;
  bool dispose(Handle handle);  // false: was gone already
  void clear();
  int64_t live() const { return live_; }

 private:
  friend class NewHandles;
  struct Slot {
    Tensor tensor;
    uint32_t generation = 0;
  };
  static constexpr int kSlotBits = 24, kGenerationBits = 20, kTagBits = 8;
  size_t slot_of(Handle handle) const;  // throws

  uint32_t env_tag_;
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_;
  int64_t live_ = 0;
  NewHandles* new_ = nullptr;  // the innermost
};

// Owns the handles that are added during its lifetime until JS has got them: nobody else knows them
// where the way to JS throws.
class NewHandles {
 public:
  explicit NewHandles(HandleTable& table)
      : table_(table), outer_(std::exchange(table.new_, this)) {}
  NewHandles(const NewHandles&) = delete;
  NewHandles& operator=(const NewHandles&) = delete;
  ~NewHandles() {
    stop();
    for (const Handle handle : handles_) table_.dispose(handle);
  }
  // Handles that are added from now on are not its own.
  void stop() { table_.new_ = outer_; }
  // Gives them to JS, or to the owner around this one.
  void deliver() {
    if (outer_) outer_->handles_.insert(outer_->handles_.end(), handles_.begin(), handles_.end());
    handles_.clear();
  }

 private:
  friend class HandleTable;
  HandleTable& table_;
  NewHandles* outer_;
  std::vector<Handle> handles_;
};

class Env {
 public:
  explicit Env(Napi::Env env);
  ~Env();

  Engines& engines() { return *engines_; }
  Engine& engine() { return engines_->current(); }  // where new tensors are made
  HandleTable& handles() { return handles_; }
  napi_env napi() const { return env_; }

  // A promise that settles when everything enqueued so far on these engines has run. `keep` (may
  // be empty) stays alive until then.
  Napi::Promise promise_after(const std::vector<Engine*>& engines, Napi::Value keep);

  // A promise that resolves when `op`, which may not throw, has run after everything enqueued so
  // far, even after a failure; the failure is left to the next promise_after().
  Napi::Promise promise_of(Engine& engine, const std::function<void()>& op);

  // Runs what Node called. Nothing that it throws gets out of here, since the frame below is C's:
  // it is thrown in JS instead, and lost where JS may not run.
  template <typename Body>
  napi_value guarded(Body&& body) noexcept {
    try {
      return body();
    } catch (...) {
      throw_in_js();
      return nullptr;
    }
  }
  void set_error_factory(Napi::Function factory) { error_factory_ = Napi::Persistent(factory); }

  const char* intern(const std::string& text) { return interned_.insert(text).first->c_str(); }
  void own(std::function<void()> destroy) { owned_.push_back(std::move(destroy)); }
  void shut_down();  // joins the streams and drops every tensor; idempotent

 private:
  struct Completion;
  std::pair<Completion*, Napi::Promise> new_completion(size_t waiting, Napi::Value keep);
  static void settle(napi_env env, napi_value, void* context, void* data);
  void settle(const Completion& completion);
  void throw_in_js() noexcept;                  // the exception that is being handled
  napi_value error_for(const std::exception&);  // of the class that lib/errors.ts registered
  napi_value make_error(const std::string& code, const std::string& message,
                        const std::string& path = {}, int64_t offset = -1);
  void adjust_external_memory();

  napi_env env_;
  HandleTable handles_;
  std::set<std::string> interned_;
  std::vector<std::function<void()>> owned_;
  std::unique_ptr<Engines> engines_;
  Napi::FunctionReference error_factory_;
  napi_threadsafe_function settle_queue_ = nullptr;
  int64_t pending_ = 0;            // promises not settled yet
  int64_t reported_external_ = 0;  // bytes reported to the JS collector
};

}  // namespace balora::binding
