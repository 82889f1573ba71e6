// Boxes in which JS holds readers and writers of weight files, and bases that lie in them, until
// they are closed or collected.
#pragma once
#include <atomic>
#include <memory>
#include <string>

#include "binding/bind.h"
#include "io/gguf.h"
#include "io/gguf_writer.h"
#include "io/offload.h"
#include "io/safetensors.h"
#include "io/safetensors_writer.h"

namespace balora::binding {

template <typename T>
struct Box {
  std::shared_ptr<T> object;
  const std::shared_ptr<T>& get() const {
    if (!object) throw ArgumentError("the file is closed");
    return object;
  }
};
using SafetensorsBox = Box<const io::SafetensorsFile>;
using GgufBox = Box<const io::GgufFile>;
using SafetensorsWriterBox = Box<io::SafetensorsWriter>;
using GgufWriterBox = Box<io::GgufWriter>;
using OffloadBox = Box<io::Offload>;

template <typename T>
constexpr napi_type_tag kTag{};
template <>
inline constexpr napi_type_tag kTag<SafetensorsBox>{0x62616c6f7261696f, 1};
template <>
inline constexpr napi_type_tag kTag<GgufBox>{0x62616c6f7261696f, 2};
template <>
inline constexpr napi_type_tag kTag<SafetensorsWriterBox>{0x62616c6f7261696f, 3};
template <>
inline constexpr napi_type_tag kTag<GgufWriterBox>{0x62616c6f7261696f, 4};
template <>
inline constexpr napi_type_tag kTag<OffloadBox>{0x62616c6f7261696f, 5};

template <>
inline constexpr napi_type_tag kTag<Box<std::atomic<bool>>>{0x62616c6f7261696f, 6};

template <typename B>
Napi::Value wrap(Env& env, B box) {
  return make_external(env.napi(), std::make_unique<B>(std::move(box)), kTag<B>);
}

template <typename T>
struct Arg<Box<T>*> {
  static std::string ts() { return "unknown"; }
  static Box<T>* from(Env&, const Napi::Value& v) {
    if (v.IsExternal()) {
      auto external = v.As<Napi::External<Box<T>>>();
      if (external.CheckTypeTag(&kTag<Box<T>>)) return external.Data();
    }
    throw ArgumentError("expected an open file of this format");
  }
};

}  // namespace balora::binding
