// Weights of a base that is larger than memory, as JS puts them into the hands of io/offload.h.
#include <memory>
#include <span>
#include <string>

#include "binding/bind.h"
#include "binding/file_boxes.h"
#include "engine/graph.h"
#include "engine/launch.h"
#include "io/offload.h"

namespace balora::binding {
namespace {

constexpr const char* kOp = "offload";

Napi::Value open_offload(Env& env, std::string folder) {
  return wrap(env, OffloadBox{std::make_shared<io::Offload>(std::move(folder))});
}
void close_offload(OffloadBox* box) {
  box->object.reset();
}

void require_weight(const Tensor& x) {
  if (!x.engine().host_memory()) {
    throw UnsupportedError(
        concat("baseOffload: a base is read from disk into the CPU's memory, not to ",
               x.engine().device()));
  }
  const Storage& storage = *x.impl()->storage;
  if (x.requires_grad())
    throw ArgumentError("offload: a weight that is trained cannot be offloaded");
  if (storage.offloaded) throw ArgumentError("offload: the weight is offloaded already");
  const bool is_whole = x.impl()->offset == 0 && (storage.encoding || storage.bytes() == x.bytes());
  if (!x.is_contiguous() || !is_whole) {
    throw ArgumentError("offload: the weight must be a whole, contiguous tensor");
  }
}

// A weight without memory of its own: over the part of the cache file, which is filled with it.
Tensor cached(const Tensor& x, io::Offload& offload) {
  Engine& engine = x.engine();
  const Storage& storage = *x.impl()->storage;
  const std::shared_ptr<const io::CachedPart> part =
      offload.reserve(static_cast<size_t>(storage.bytes()));
  const Tensor given[] = {x.as_encoded()};
  launch(kOp, std::span(given), std::span<const Tensor>(), [part](Launch& l) {
    l.engine->depend_on(part);
    part->write(l.in(0)->data);
    return 0;
  });
  if (!storage.encoding) {
    return Tensor::external(engine, x.shape(), x.dtype(), part->bytes().data(), part);
  }
  return Tensor::encoded_external(engine, x.shape(), x.dtype(), storage.encoding, part->bytes(),
                                  part);
}

// x, if its bytes are the pages of a file, or another tensor of its values, in either case dropped
// from memory until an op uses it.
Tensor offload_weight(OffloadBox* box, Tensor x, bool gathered) {
  require_weight(x);
  refuse_while_recording(x.engine(), "offloading a weight");
  const std::shared_ptr<io::Offload>& offload = box->get();
  if (x.numel() == 0) return x;
  const bool in_file = x.impl()->storage->external();
  Tensor weight = in_file ? x : cached(x, *offload);
  Storage& storage = *weight.impl()->storage;
  const std::span<const std::byte> bytes(static_cast<const std::byte*>(storage.data()),
                                         static_cast<size_t>(storage.bytes()));
  if (in_file) {  // the check of its values has read them
    const Tensor given[] = {weight.as_encoded()};
    launch(kOp, std::span(given), std::span<const Tensor>(), [bytes](Launch&) {
      platform::drop_pages(bytes);
      return 0;
    });
  }
  storage.offloaded = offload->add(bytes, storage.owner(), gathered);
  return weight;
}

void set_offload_limits(OffloadBox* box, double resident_bytes, double ahead_bytes) {
  const auto bytes = [](double value) {
    return static_cast<uint64_t>(bytes_of_limit("offload", value));
  };
  box->get()->set_limits(bytes(resident_bytes), bytes(ahead_bytes));
}

Napi::Value offload_stats(Env& env, OffloadBox* box) {
  Napi::Env napi(env.napi());
  const io::OffloadStats stats = box->get()->stats();
  auto object = Napi::Object::New(napi);
  object.Set("totalBytes", static_cast<double>(stats.total));
  object.Set("residentBytes", static_cast<double>(stats.resident));
  object.Set("presentBytes", static_cast<double>(stats.present));
  object.Set("mostPresentBytes", static_cast<double>(stats.most_present));
  object.Set("readBytes", static_cast<double>(stats.read));
  object.Set("waitedSeconds", stats.waited);
  return object;
}

}  // namespace

void bind_offload(Module& m) {
  op(m, "openOffload", &open_offload, {"folder"});
  op(m, "closeOffload", &close_offload, {"offload"});
  op(m, "offloadWeight", &offload_weight, {"offload", "x", "gathered"});
  op(m, "setOffloadLimits", &set_offload_limits, {"offload", "residentBytes", "aheadBytes"});
  op(m, "offloadStats", &offload_stats, {"offload"});
}

}  // namespace balora::binding
