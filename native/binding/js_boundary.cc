#include "binding/js_boundary.h"

#include <string>

#include "tensor/errors.h"

namespace balora::binding {

void check_js(napi_env env, napi_status status) {
  if (status == napi_ok) return;
  const napi_extended_error_info* info = nullptr;
  napi_get_last_error_info(env, &info);  // first: any other call replaces it
  const std::string message = info && info->error_message ? info->error_message : "no reason given";
  bool pending = false;
  napi_is_exception_pending(env, &pending);
  // Without one, this status means that the environment stops.
  if (pending || status == napi_pending_exception) throw JsException();
  throw NativeError("Node-API: " + message);
}

napi_value call_js(napi_env env, napi_value function, std::span<const napi_value> arguments) {
  napi_value undefined = nullptr, result = nullptr;
  check_js(env, napi_get_undefined(env, &undefined));
  check_js(env, napi_call_function(env, undefined, function, arguments.size(), arguments.data(),
                                   &result));
  return result;
}

Napi::Value element_of(const Napi::Array& array, uint32_t index) {
  napi_value value = nullptr;
  check_js(array.Env(), napi_get_element(array.Env(), array, index, &value));
  return {array.Env(), value};
}

Napi::Value property_of(const Napi::Object& object, const char* name) {
  napi_value value = nullptr;
  check_js(object.Env(), napi_get_named_property(object.Env(), object, name, &value));
  return {object.Env(), value};
}

}  // namespace balora::binding
