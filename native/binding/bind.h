// One template reads a C++ signature and makes the JS function and its TypeScript declaration from
// it, so the two cannot drift. A row:  op(m, "rmsNorm", &rms_norm, {"x", "weight", "eps", ...},
// Grad::kYes); A leading Engine& or Env& parameter is filled in and does not appear in JS. Tensors
// travel as handles, structures as objects (Named).
#pragma once
#include <napi.h>

#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "binding/env.h"

namespace balora::binding {

// kNone: the op has no gradient by nature (comparisons, indices, in-place updates); kPlain: not an
// op on tensors.
enum class Grad { kYes, kNone, kPlain };

struct Signature {
  std::string name;
  std::string typescript;
  Grad grad;
};

struct Module {
  Env& env;
  Napi::Object exports;
  std::vector<Signature> signatures;
};

// ---- JS -> C++ ----------------------------------------------------------------------------------

template <typename T>
struct Arg;

// A value as messages show it. An object's or a symbol's text would be made by the caller's own
// code, or not at all.
inline std::string shown(const Napi::Value& value) {
  if (value.IsSymbol()) return "a symbol";
  if (value.IsFunction()) return "a function";
  if (value.IsArray()) return "an array";
  if (value.IsObject()) return "an object";
  return value.ToString().Utf8Value();
}

[[noreturn]] inline void bad_argument(const char* expected, const Napi::Value& value) {
  throw ArgumentError(std::string("expected ") + expected + ", got " + shown(value));
}

template <>
struct Arg<double> {
  static std::string ts() { return "number"; }
  static double from(Env&, const Napi::Value& v) {
    if (!v.IsNumber()) bad_argument("a number", v);
    return v.As<Napi::Number>().DoubleValue();
  }
};
// An integer; any other value is refused as no such thing as `expected`.
inline int64_t integer_of(const Napi::Value& v, const char* expected) {
  if (!v.IsNumber()) bad_argument(expected, v);
  const double value = v.As<Napi::Number>().DoubleValue();
  // A double beyond the integers, NaN as well, has no conversion that C++ defines.
  if (!(value >= -0x1p63 && value < 0x1p63) ||
      value != static_cast<double>(static_cast<int64_t>(value))) {
    bad_argument(expected, v);
  }
  return static_cast<int64_t>(value);
}
template <>
struct Arg<int64_t> {
  static std::string ts() { return "number"; }
  static int64_t from(Env& env, const Napi::Value& v) {
    Arg<double>::from(env, v);  // refuses what is no number
    return integer_of(v, "an integer");
  }
};
template <>
struct Arg<int> {
  static std::string ts() { return "number"; }
  static int from(Env& env, const Napi::Value& v) {
    const int64_t value = Arg<int64_t>::from(env, v);
    if (value < INT32_MIN || value > INT32_MAX) bad_argument("a 32-bit integer", v);
    return static_cast<int>(value);
  }
};
template <>
struct Arg<bool> {
  static std::string ts() { return "boolean"; }
  static bool from(Env&, const Napi::Value& v) {
    if (!v.IsBoolean()) bad_argument("a boolean", v);
    return v.As<Napi::Boolean>().Value();
  }
};
template <>
struct Arg<std::string> {
  static std::string ts() { return "string"; }
  static std::string from(Env&, const Napi::Value& v) {
    if (!v.IsString()) bad_argument("a string", v);
    return v.As<Napi::String>().Utf8Value();
  }
};
template <>
struct Arg<DType> {
  static std::string ts() { return "DType"; }
  static DType from(Env& env, const Napi::Value& v) {
    const std::string name = Arg<std::string>::from(env, v);
    for (int i = 0; i < kDTypeCount; ++i) {
      if (name == dtype_name(static_cast<DType>(i))) return static_cast<DType>(i);
    }
    bad_argument("a dtype (f32, bf16, f16, f64, i32, i64, u8)", v);
  }
};
template <>
struct Arg<Tensor> {
  static std::string ts() { return "Handle"; }
  static Tensor from(Env& env, const Napi::Value& v) {
    return env.handles().get(integer_of(v, "a tensor"));
  }
};
template <typename T>
struct Arg<std::optional<T>> {
  static std::string ts() { return Arg<T>::ts() + " | null"; }
  static std::optional<T> from(Env& env, const Napi::Value& v) {
    if (v.IsUndefined() || v.IsNull()) return std::nullopt;
    return Arg<T>::from(env, v);
  }
};
template <>
struct Arg<Shape> {
  static std::string ts() { return "readonly number[]"; }
  static Shape from(Env& env, const Napi::Value& v) {
    if (!v.IsArray()) bad_argument("an array of extents", v);
    const auto array = v.As<Napi::Array>();
    Shape shape;
    for (uint32_t i = 0; i < array.Length(); ++i) {
      shape.push_back(Arg<int64_t>::from(env, element_of(array, i)));
    }
    return shape;
  }
};
template <typename T>
struct Arg<std::vector<T>> {
  static std::string ts() { return "readonly (" + Arg<T>::ts() + ")[]"; }
  static std::vector<T> from(Env& env, const Napi::Value& v) {
    if (!v.IsArray()) bad_argument("an array", v);
    const auto array = v.As<Napi::Array>();
    std::vector<T> values;
    values.reserve(array.Length());
    for (uint32_t i = 0; i < array.Length(); ++i) {
      values.push_back(Arg<T>::from(env, element_of(array, i)));
    }
    return values;
  }
};
template <>
struct Arg<Napi::Function> {
  static std::string ts() { return "(...args: never[]) => unknown"; }
  static Napi::Function from(Env&, const Napi::Value& v) {
    if (!v.IsFunction()) bad_argument("a function", v);
    return v.As<Napi::Function>();
  }
};
template <>
struct Arg<Napi::Uint8Array> {
  static std::string ts() { return "Uint8Array"; }
  static Napi::Uint8Array from(Env&, const Napi::Value& v) {
    if (!v.IsTypedArray() || v.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
      bad_argument("a Uint8Array", v);
    }
    return v.As<Napi::Uint8Array>();
  }
};

// A number of bytes that JS gives as a limit, which need not be whole.
inline int64_t bytes_of_limit(const char* op, double value) {
  if (!(value >= 0 && value < 0x1p63)) {
    throw ArgumentError(concat(op, ": a limit must be a number of bytes, got ", value));
  }
  return static_cast<int64_t>(value);
}

// A structure that JS passes as an object; its fields are listed by a specialisation:
//   template <>
//   struct Named<Options> {
//     static auto fields() { return std::tuple{field("topK", &Options::top_k)}; }
//   };
template <typename S>
struct Named;
template <typename S, typename T>
struct NamedField {
  using Type = T;
  const char* name;
  T S::*member;
};
template <typename S, typename T>
constexpr NamedField<S, T> field(const char* name, T S::*member) {
  return {name, member};
}
template <typename S>
concept Structure = requires { Named<S>::fields(); };

template <typename T>
T argument_of(Env& env, const Napi::Object& object, const char* name) {
  try {
    return Arg<T>::from(env, property_of(object, name));
  } catch (const ArgumentError& error) {
    throw ArgumentError(concat(name, ": ", error.what()));
  }
}

template <Structure S>
struct Arg<S> {
  static std::string ts() {
    std::string text;
    const auto add = [&]<typename F>(const F& each) {
      text += concat(text.empty() ? "{ " : "; ", each.name, ": ", Arg<typename F::Type>::ts());
    };
    std::apply([&](const auto&... each) { (add(each), ...); }, Named<S>::fields());
    return text + " }";
  }
  static S from(Env& env, const Napi::Value& v) {
    if (!v.IsObject()) bad_argument("an object", v);
    const auto object = v.As<Napi::Object>();
    S value{};
    const auto read = [&]<typename F>(const F& each) {
      value.*each.member = argument_of<typename F::Type>(env, object, each.name);
    };
    std::apply([&](const auto&... each) { (read(each), ...); }, Named<S>::fields());
    return value;
  }
};

// ---- C++ -> JS ----------------------------------------------------------------------------------

template <typename T>
struct Result;

template <>
struct Result<void> {
  static std::string ts() { return "void"; }
};
template <>
struct Result<Tensor> {
  static std::string ts() { return "Handle"; }
  static Napi::Value to(Env& env, const Tensor& t) {
    return Napi::Number::New(env.napi(), static_cast<double>(env.handles().add(t)));
  }
};
template <>
struct Result<double> {
  static std::string ts() { return "number"; }
  static Napi::Value to(Env& env, double v) { return Napi::Number::New(env.napi(), v); }
};
template <>
struct Result<int64_t> {
  static std::string ts() { return "number"; }
  static Napi::Value to(Env& env, int64_t v) {
    return Napi::Number::New(env.napi(), static_cast<double>(v));
  }
};
template <>
struct Result<bool> {
  static std::string ts() { return "boolean"; }
  static Napi::Value to(Env& env, bool v) { return Napi::Boolean::New(env.napi(), v); }
};
template <>
struct Result<std::string> {
  static std::string ts() { return "string"; }
  static Napi::Value to(Env& env, const std::string& v) { return Napi::String::New(env.napi(), v); }
};
template <>
struct Result<DType> {
  static std::string ts() { return "DType"; }
  static Napi::Value to(Env& env, DType v) { return Napi::String::New(env.napi(), dtype_name(v)); }
};
template <>
struct Result<Shape> {
  static std::string ts() { return "number[]"; }
  static Napi::Value to(Env& env, const Shape& shape) {
    auto array = Napi::Array::New(env.napi(), static_cast<size_t>(shape.ndim()));
    for (int i = 0; i < shape.ndim(); ++i) {
      array.Set(static_cast<uint32_t>(i),
                Napi::Number::New(env.napi(), static_cast<double>(shape[i])));
    }
    return array;
  }
};
template <typename T>
struct Result<std::vector<T>> {
  static std::string ts() { return "(" + Result<T>::ts() + ")[]"; }
  static Napi::Value to(Env& env, const std::vector<T>& values) {
    NewHandles made(env.handles());
    auto array = Napi::Array::New(env.napi(), values.size());
    for (uint32_t i = 0; i < values.size(); ++i) array.Set(i, Result<T>::to(env, values[i]));
    made.deliver();
    return array;
  }
};
template <typename... Ts>
struct Result<std::tuple<Ts...>> {
  static std::string ts() {
    std::string text;
    ((text += (text.empty() ? "[" : ", ") + Result<Ts>::ts()), ...);
    return text + "]";
  }
  static Napi::Value to(Env& env, const std::tuple<Ts...>& values) {
    NewHandles made(env.handles());
    auto array = Napi::Array::New(env.napi(), sizeof...(Ts));
    std::apply(
        [&](const auto&... parts) {
          uint32_t i = 0;
          (array.Set(i++, Result<Ts>::to(env, parts)), ...);
        },
        values);
    made.deliver();
    return array;
  }
};
template <typename A, typename B>
struct Result<std::pair<A, B>> : Result<std::tuple<A, B>> {
  static Napi::Value to(Env& env, const std::pair<A, B>& v) {
    return Result<std::tuple<A, B>>::to(env, {v.first, v.second});
  }
};
template <>
struct Result<Napi::Value> {
  static std::string ts() { return "unknown"; }
  static Napi::Value to(Env&, const Napi::Value& v) { return v; }
};
// A promise without a value (see Env::promise_after_stream).
template <>
struct Result<Napi::Promise> {
  static std::string ts() { return "Promise<void>"; }
  static Napi::Value to(Env&, const Napi::Promise& v) { return v; }
};

// ---- rows ---------------------------------------------------------------------------------------

template <typename T>
constexpr bool kInjected = std::is_same_v<T, Engine&> || std::is_same_v<T, Env&>;

template <typename T>
decltype(auto) convert(Env& env, const Napi::CallbackInfo& info, size_t& next) {
  if constexpr (std::is_same_v<T, Engine&>) {
    return static_cast<Engine&>(env.engine());
  } else if constexpr (std::is_same_v<T, Env&>) {
    return static_cast<Env&>(env);
  } else {
    return Arg<std::remove_cvref_t<T>>::from(env, info[next++]);
  }
}

template <typename R, typename... Args>
struct Row {
  Env* env;
  R (*fn)(Args...);
  std::string name;
  std::vector<std::string> params;

  Napi::Value invoke(const Napi::CallbackInfo& info) const {
    size_t next = 0;
    // Braced, so that the arguments are converted left to right.
    std::tuple<decltype(convert<Args>(*env, info, next))...> args{
        convert<Args>(*env, info, next)...};
    if constexpr (std::is_void_v<R>) {
      std::apply(fn, std::move(args));
      return info.Env().Undefined();
    } else {
      return Result<std::remove_cvref_t<R>>::to(*env, std::apply(fn, std::move(args)));
    }
  }

  static napi_value call(napi_env napi, napi_callback_info info) {
    void* data = nullptr;
    napi_get_cb_info(napi, info, nullptr, nullptr, nullptr, &data);
    const Row& row = *static_cast<Row*>(data);
    return row.env->guarded(
        [&]() -> napi_value { return row.invoke(Napi::CallbackInfo(napi, info)); });
  }

  std::string typescript() const {
    std::string text = "(";
    size_t i = 0;
    const auto add = [&]<typename T>() {
      if constexpr (!kInjected<T>) {
        if (i) text += ", ";
        text += params.at(i) + ": " + Arg<std::remove_cvref_t<T>>::ts();
        ++i;
      }
    };
    (add.template operator()<Args>(), ...);
    if (i != params.size())
      throw NativeError(name + ": the row names " + std::to_string(params.size()) + " parameters");
    return text + "): " + Result<std::remove_cvref_t<R>>::ts();
  }
};

template <typename R, typename... Args>
void op(Module& m, const char* name, R (*fn)(Args...), std::vector<std::string> params,
        Grad grad = Grad::kPlain) {
  auto row = std::make_unique<Row<R, Args...>>();
  row->env = &m.env;
  row->fn = fn;
  row->name = name;
  row->params = std::move(params);
  m.signatures.push_back({name, row->typescript(), grad});
  Row<R, Args...>* raw = row.release();
  m.env.own([raw] { delete raw; });
  napi_value function = nullptr;
  check_js(m.env.napi(), napi_create_function(m.env.napi(), name, NAPI_AUTO_LENGTH,
                                              &Row<R, Args...>::call, raw, &function));
  m.exports.Set(name, function);
}

}  // namespace balora::binding
