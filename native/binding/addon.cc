// The addon's entry: one Env per Node environment, and the rows of every bind_*.cc.
#include <napi.h>

#include "binding/bind.h"
#include "platform/platform.h"

namespace balora::binding {

#define BINDING(name) void bind_##name(Module& m);
#include "binding/bindings.def"
#undef BINDING

namespace {

// OpenMP's threads may outlive the environment that started them: the code they return
// to must stay mapped.
void keep_loaded() {
  platform::keep_loaded(reinterpret_cast<const void*>(&keep_loaded));
}

const char* grad_name(Grad grad) {
  switch (grad) {
    case Grad::kYes:
      return "differentiable";
    case Grad::kNone:
      return "noGrad";
    default:
      return "plain";
  }
}

// null where it failed: the reason then waits in JS.
Env* make_env(napi_env napi) noexcept {
  try {
    const auto destroy = [](napi_env, void* env, void*) { delete static_cast<Env*>(env); };
    auto* env = new Env(Napi::Env(napi));
    napi_set_instance_data(napi, env, destroy, nullptr);
    return env;
  } catch (const JsException&) {
    return nullptr;
  } catch (const std::exception& error) {
    napi_throw_error(napi, code_of(error), message_of(error));
    return nullptr;
  }
}

napi_value bind_all(Env& env, Napi::Object exports) {
  const Napi::Env napi(env.napi());
  Module m{env, exports, {}};
#define BINDING(name) bind_##name(m);
#include "binding/bindings.def"
#undef BINDING
  auto signatures = Napi::Array::New(napi, m.signatures.size());
  for (uint32_t i = 0; i < m.signatures.size(); ++i) {
    auto entry = Napi::Object::New(napi);
    entry.Set("name", m.signatures[i].name);
    entry.Set("typescript", m.signatures[i].typescript);
    entry.Set("grad", grad_name(m.signatures[i].grad));
    signatures.Set(i, entry);
  }
  exports.Set("signatures", signatures);
  return exports;
}

}  // namespace
}  // namespace balora::binding

NAPI_MODULE_INIT() {
  using namespace balora::binding;
  keep_loaded();
  Env* made = make_env(env);
  if (!made) return nullptr;
  return made->guarded([&] { return bind_all(*made, Napi::Object(env, exports)); });
}
