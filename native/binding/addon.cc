// The addon's entry: one Env per Node environment, and the rows of every bind_*.cc.
#include <napi.h>

#if defined(__linux__)
#include <dlfcn.h>
#endif

#include "binding/bind.h"

namespace balora::binding {

#define ROOM(name) void bind_##name(Module& m);
#include "binding/rooms.def"
#undef ROOM

namespace {

// OpenMP's threads may outlive the environment that started them: the code they return to must stay
// mapped.
void keep_loaded() {
#if defined(__linux__)
  Dl_info info;
  if (dladdr(reinterpret_cast<void*>(&keep_loaded), &info) && info.dli_fname) {
    dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
  }
#endif
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

Napi::Object init(Napi::Env napi, Napi::Object exports) {
  keep_loaded();
  Env* env;
  try {
    env = new Env(napi);
  } catch (const std::exception& error) {
    throw Napi::Error::New(napi, error.what());
  }
  napi_set_instance_data(
      napi, env, [](napi_env, void* data, void*) { delete static_cast<Env*>(data); }, nullptr);
  Module m{*env, exports, {}};
#define ROOM(name) bind_##name(m);
#include "binding/rooms.def"
#undef ROOM
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

static Napi::Object balora_init(Napi::Env env, Napi::Object exports) {
  return balora::binding::init(env, exports);
}
NODE_API_MODULE(balora, balora_init)
