// Where C++ calls JS, and where exceptions of C++ end.
//
// JS may be forbidden in the middle of a call: in a worker that was told to stop, and in a script
// that ran out of its time (vm's timeout) or was interrupted (Ctrl-C in the REPL). Whatever could
// run JS fails from then on, and so may making or throwing an error of JS; node-addon-api ends the
// process then. So C++ calls JS through these functions alone, and what it
// throws ends in Env::guarded().
#pragma once
#include <napi.h>

#include <memory>
#include <span>

namespace balora::binding {

// JS that C++ called threw, or may not run any more. Its exception waits in the environment, where
// Node finds it once C++ has returned: all that is left to do is unwind. Not a std::exception, so
// that nobody takes it for an error of C++.
struct JsException {};

// Throws JsException where JS threw or may not run, NativeError for any other failure.
void check_js(napi_env env, napi_status status);

napi_value call_js(napi_env env, napi_value function, std::span<const napi_value> arguments);

// An array's element; a getter may stand behind it.
Napi::Value element_of(const Napi::Array& array, uint32_t index);

// An object's property by name, as element_of().
Napi::Value property_of(const Napi::Object& object, const char* name);

// A native object that JS holds until it is collected or the environment ends. Its type is
// told by the tag.
template <typename T>
Napi::Value make_external(napi_env env, std::unique_ptr<T> object, const napi_type_tag& tag) {
  const auto destroy = [](napi_env, void* held, void*) { delete static_cast<T*>(held); };
  napi_value value = nullptr;
  check_js(env, napi_create_external(env, object.get(), destroy, nullptr, &value));
  static_cast<void>(object.release());
  check_js(env, napi_type_tag_object(env, value, &tag));
  return {env, value};
}

}  // namespace balora::binding
