// Weight files as JS sees them: headers as plain objects, tensors read on the engine's stream (or
// aliased from the map), files written from it.
#include <algorithm>
#include <cstring>
#include <functional>
#include <span>
#include <string_view>

#include "binding/bind.h"
#include "binding/stored.h"
#include "engine/launch.h"
#include "io/dequantize.h"
#include "io/gguf.h"
#include "io/gguf_writer.h"
#include "io/quantize.h"
#include "io/safetensors.h"
#include "io/safetensors_writer.h"
#include "kernels/cpu/runtime/parallel.h"
#include "ops/ops.h"

namespace balora::binding {

using io::GgufFile;
using io::GgufTensor;
using io::GgufWriter;
using io::SafetensorsEntry;
using io::SafetensorsFile;
using io::SafetensorsWriter;

namespace {

constexpr int64_t kGrain = 1 << 15;  // elements a thread converts at least

// A native object held by JS until it is closed or collected.
template <typename T>
struct Box {
  std::shared_ptr<T> object;
  const std::shared_ptr<T>& get() const {
    if (!object) throw ArgumentError("the file is closed");
    return object;
  }
};
using SafetensorsBox = Box<const SafetensorsFile>;
using GgufBox = Box<const GgufFile>;
using WriterBox = Box<SafetensorsWriter>;
using GgufWriterBox = Box<GgufWriter>;

template <typename T>
constexpr napi_type_tag kTag{};
template <>
constexpr napi_type_tag kTag<SafetensorsBox>{0x62616c6f7261696f, 1};
template <>
constexpr napi_type_tag kTag<GgufBox>{0x62616c6f7261696f, 2};
template <>
constexpr napi_type_tag kTag<WriterBox>{0x62616c6f7261696f, 3};
template <>
constexpr napi_type_tag kTag<GgufWriterBox>{0x62616c6f7261696f, 4};

template <typename B>
Napi::Value wrap(Env& env, B box) {
  return make_external(env.napi(), std::make_unique<B>(std::move(box)), kTag<B>);
}

}  // namespace

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

namespace {

// ---- headers ------------------------------------------------------------------------------------

// Exact: a number where a double holds the integer, else a BigInt.
template <typename Int>
Napi::Value integer(Napi::Env napi, Int value) {
  constexpr auto kSafe = static_cast<Int>((int64_t{1} << 53) - 1);
  const bool below = std::is_signed_v<Int> && value < Int{0} - kSafe;
  if (value > kSafe || below) return Napi::BigInt::New(napi, value);
  return Napi::Number::New(napi, static_cast<double>(value));
}

// Bytes of one value of metadata that JS may get: published templates have 20 KB, and vocabularies
// 10 MB.
constexpr uint64_t kMaxTextBytes = uint64_t{1} << 26;
constexpr uint64_t kMaxArrayBytes = uint64_t{1} << 31;

// Makes the JS value of a value of metadata, whose texts and numbers are read from the file here.
class MetadataReader {
 public:
  MetadataReader(Napi::Env napi, const GgufFile& file, const std::string& key)
      : napi_(napi), file_(file), key_(key) {}

  Napi::Value read(const io::GgufValue& value) {
    return std::visit([&](const auto& v) { return read(v); }, value.value);
  }

 private:
  Napi::Value read(uint64_t value) { return integer(napi_, value); }
  Napi::Value read(int64_t value) { return integer(napi_, value); }
  Napi::Value read(double value) { return Napi::Number::New(napi_, value); }
  Napi::Value read(bool value) { return Napi::Boolean::New(napi_, value); }

  Napi::Value read(const io::GgufText& text) {
    take(text.begin, text.bytes, text_bytes_ += text.bytes, kMaxTextBytes);
    const std::string_view view = file_.text(text);
    return Napi::String::New(napi_, view.data(), view.size());
  }

  Napi::Value read(const io::GgufArray& array) {
    if (io::gguf_scalar_bytes(array.element) > 0) return numbers(array);
    const std::vector<io::GgufValue> items = file_.items(key_, array);
    auto result = Napi::Array::New(napi_, items.size());
    for (uint32_t i = 0; i < items.size(); ++i) {
      Napi::HandleScope scope(napi_);
      result.Set(i, read(items[i]));
    }
    return result;
  }

  Napi::Value numbers(const io::GgufArray& array) {
    const auto bytes = file_.numbers(array);
    take(array.begin, bytes.size(), array_bytes_ += bytes.size(), kMaxArrayBytes);
    switch (array.element) {
      case io::GgufType::kI8:
        return copied<int8_t>(bytes);
      case io::GgufType::kU16:
        return copied<uint16_t>(bytes);
      case io::GgufType::kI16:
        return copied<int16_t>(bytes);
      case io::GgufType::kU32:
        return copied<uint32_t>(bytes);
      case io::GgufType::kI32:
        return copied<int32_t>(bytes);
      case io::GgufType::kF32:
        return copied<float>(bytes);
      case io::GgufType::kU64:
        return copied<uint64_t>(bytes);
      case io::GgufType::kI64:
        return copied<int64_t>(bytes);
      case io::GgufType::kF64:
        return copied<double>(bytes);
      default:  // UINT8 and BOOL
        return copied<uint8_t>(bytes);
    }
  }

  template <typename T>
  Napi::Value copied(std::span<const std::byte> bytes) {
    auto array = Napi::TypedArrayOf<T>::New(napi_, bytes.size() / sizeof(T));
    if (!bytes.empty()) std::memcpy(array.Data(), bytes.data(), bytes.size());
    return array;
  }

  void take(uint64_t at, uint64_t bytes, uint64_t total, uint64_t most) const {
    if (total <= most) return;
    throw FormatError(file_.path(), static_cast<int64_t>(at),
                      concat(key_, ": ", bytes, " bytes that make ", total,
                             " in this value, at most ", most, " are read"));
  }

  Napi::Env napi_;
  const GgufFile& file_;
  const std::string& key_;
  uint64_t text_bytes_ = 0, array_bytes_ = 0;
};

Napi::Value shape_to_js(Napi::Env napi, const std::vector<int64_t>& shape) {
  auto array = Napi::Array::New(napi, shape.size());
  for (uint32_t i = 0; i < shape.size(); ++i) array.Set(i, integer(napi, shape[i]));
  return array;
}

Napi::Object tensor_to_js(Napi::Env napi, const std::string& name, const std::string& dtype,
                          const std::vector<int64_t>& shape, uint64_t bytes) {
  auto object = Napi::Object::New(napi);
  object.Set("name", name);
  object.Set("dtype", dtype);
  object.Set("shape", shape_to_js(napi, shape));
  object.Set("bytes", integer(napi, bytes));
  return object;
}

Napi::Value open_safetensors(Env& env, std::string path) {
  return wrap(env, SafetensorsBox{SafetensorsFile::open(path)});
}
Napi::Value open_gguf(Env& env, std::string path) {
  return wrap(env, GgufBox{GgufFile::open(path)});
}
void close_safetensors(SafetensorsBox* file) {
  file->object.reset();
}
void close_gguf(GgufBox* file) {
  file->object.reset();
}

// {size, mtimeNs, ino}
Napi::Value identity_to_js(Napi::Env napi, const io::FileIdentity& identity) {
  auto object = Napi::Object::New(napi);
  object.Set("size", Napi::BigInt::New(napi, identity.size));
  object.Set("mtimeNs", Napi::BigInt::New(napi, identity.modified));
  object.Set("ino", Napi::BigInt::New(napi, identity.inode));
  return object;
}

// {identity: as above, metadata: [key, value][], tensors: {name, dtype, shape, bytes}[]}
Napi::Value safetensors_header(Env& env, SafetensorsBox* file) {
  Napi::Env napi(env.napi());
  const io::SafetensorsHeader& header = file->get()->header();
  auto metadata = Napi::Array::New(napi);
  for (const auto& [key, value] : header.metadata) {
    auto pair = Napi::Array::New(napi, 2);
    pair.Set(0u, key);
    pair.Set(1u, value);
    metadata.Set(metadata.Length(), pair);
  }
  auto tensors = Napi::Array::New(napi, header.entries.size());
  for (uint32_t i = 0; i < header.entries.size(); ++i) {
    const SafetensorsEntry& entry = header.entries[i];
    tensors.Set(
        i, tensor_to_js(napi, entry.name, entry.dtype_name, entry.shape, entry.end - entry.begin));
  }
  auto object = Napi::Object::New(napi);
  object.Set("identity", identity_to_js(napi, file->get()->file()->identity()));
  object.Set("metadata", metadata);
  object.Set("tensors", tensors);
  return object;
}

// {identity, version, alignment, metadata: [key, type][], tensors: as above}
Napi::Value gguf_header(Env& env, GgufBox* file) {
  Napi::Env napi(env.napi());
  const io::GgufHeader& header = file->get()->header();
  auto metadata = Napi::Array::New(napi, header.metadata.size());
  for (uint32_t i = 0; i < header.metadata.size(); ++i) {
    const auto& [key, value] = header.metadata[i];
    std::string type = io::gguf_type_name(value.type);
    if (const auto* array = std::get_if<io::GgufArray>(&value.value)) {
      type += std::string(" ") + io::gguf_type_name(array->element);
    }
    auto entry = Napi::Array::New(napi, 2);
    entry.Set(0u, key);
    entry.Set(1u, type);
    metadata.Set(i, entry);
  }
  auto tensors = Napi::Array::New(napi, header.tensors.size());
  for (uint32_t i = 0; i < header.tensors.size(); ++i) {
    const GgufTensor& tensor = header.tensors[i];
    tensors.Set(i, tensor_to_js(napi, tensor.name, tensor.type->name, tensor.shape, tensor.bytes));
  }
  auto object = Napi::Object::New(napi);
  object.Set("identity", identity_to_js(napi, file->get()->file()->identity()));
  object.Set("version", static_cast<double>(header.version));
  object.Set("alignment", static_cast<double>(header.alignment));
  object.Set("metadata", metadata);
  object.Set("tensors", tensors);
  return object;
}

// The place of the entry `index` of the metadata.
size_t entry_at(const GgufFile& file, int64_t index) {
  const size_t count = file.header().metadata.size();
  if (index < 0 || index >= static_cast<int64_t>(count)) {
    throw ArgumentError(concat("gguf: index must be below ", count, ", got ", index));
  }
  return static_cast<size_t>(index);
}

// The value of the entry `index` of the metadata.
Napi::Value gguf_value(Env& env, GgufBox* file, int64_t index) {
  const auto& [key, value] = file->get()->header().metadata[entry_at(*file->get(), index)];
  return file->get()->file()->parsed([&](std::span<const std::byte>) {
    return MetadataReader(Napi::Env(env.napi()), *file->get(), key).read(value);
  });
}

// The bytes of the entry `index` of the metadata, its key included, as a Uint8Array.
Napi::Value gguf_entry(Env& env, GgufBox* file, int64_t index) {
  const io::GgufText& entry = file->get()->header().entries[entry_at(*file->get(), index)];
  return file->get()->file()->parsed([&](std::span<const std::byte>) {
    const std::string_view bytes = file->get()->text(entry);
    auto array = Napi::Uint8Array::New(Napi::Env(env.napi()), bytes.size());
    std::memcpy(array.Data(), bytes.data(), bytes.size());
    return array;
  });
}

std::vector<std::vector<std::string>> safetensors_index(std::string path) {
  const auto shards = io::MappedFile::open(path)->parsed([&path](std::span<const std::byte> bytes) {
    return io::parse_safetensors_index(path,
                                       {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  });
  std::vector<std::vector<std::string>> rows;
  for (const auto& [name, shard] : shards) rows.push_back({name, shard});
  return rows;
}

// ---- reading ------------------------------------------------------------------------------------

Shape shape_of(const std::string& path, const std::string& name, const std::vector<int64_t>& dims) {
  if (dims.size() > BALORA_MAX_DIMS) {
    throw UnsupportedError(concat(path, ": ", name, " has ", dims.size(), " dimensions, at most ",
                                  BALORA_MAX_DIMS, " are supported"));
  }
  return Shape(std::span(dims));
}

Tensor read_safetensors(Engine& engine, SafetensorsBox* box, std::string name, DType dtype,
                        bool share, bool check_finite) {
  const std::shared_ptr<const SafetensorsFile>& file = box->get();
  const SafetensorsEntry* entry = file->find(name);
  if (!entry)
    throw FormatError(file->path(), -1,
                      concat("holds no tensor ", name, "; name one of its tensors"));
  if (!entry->dtype || !io::can_convert(*entry->dtype, dtype)) {
    throw UnsupportedError(concat(file->path(), ": ", name, " of dtype ", entry->dtype_name,
                                  " cannot be read as ", dtype_name(dtype)));
  }
  const Shape shape = shape_of(file->path(), name, entry->shape);
  const std::span<const std::byte> bytes = file->bytes(*entry);
  const std::byte* data = bytes.data();
  const bool aligned = reinterpret_cast<uintptr_t>(data) % dtype_size(dtype) == 0;
  const DType from = *entry->dtype;
  Stored stored{file->file(),
                entry->name,
                bytes,
                shape.numel(),
                1,
                kGrain,
                [from, data, dtype](int64_t begin, int64_t end, void* out) {
                  io::convert(from, data + begin * dtype_size(from), 0, end - begin, dtype, out);
                }};
  const bool copied =
      !share || from != dtype || !aligned || shape.numel() == 0 || !engine.host_memory();
  const auto read = copied ? &read_stored : &alias_stored;
  return read(engine, shape, dtype, std::move(stored), check_finite);
}

// heads > 0: rows are put back from the llama architecture's interleaved order to HF's halves:
// within a head of D rows, stored row 2i + j is row j*D/2 + i
// (convert_hf_to_gguf.py, LlamaModel.permute).
Tensor read_gguf(Engine& engine, GgufBox* box, std::string name, DType dtype, int64_t heads,
                 bool check_finite) {
  const std::shared_ptr<const GgufFile>& file = box->get();
  const GgufTensor* tensor = file->find(name);
  if (!tensor)
    throw FormatError(file->path(), -1,
                      concat("holds no tensor ", name, "; name one of its tensors"));
  if (!tensor->type->decoded) {
    throw UnsupportedError(concat(file->path(), ": ", name, " has type ", tensor->type->name,
                                  ", which is not decoded; supported: ", io::decoded_ggml_types()));
  }
  if (dtype != DType::kF32 && dtype != DType::kBF16) {
    throw UnsupportedError(concat("GGUF tensors are read as f32 or bf16, not ", dtype_name(dtype)));
  }
  const Shape shape = shape_of(file->path(), name, tensor->shape);
  if (heads < 0) throw ArgumentError(concat("readGguf: permutedHeads must be >= 0, got ", heads));
  if (heads > 0 && shape.ndim() == 0) {
    throw FormatError(file->path(), static_cast<int64_t>(tensor->begin),
                      concat(name, ": a single number has no rows to be in ", heads, " heads"));
  }
  const int64_t rows = heads > 0 ? shape[0] : 1;
  if (heads > 0 && rows > 0 && (heads > rows / 2 || rows % (2 * heads) != 0)) {
    throw FormatError(file->path(), static_cast<int64_t>(tensor->begin),
                      concat(name, ": ", rows, " rows are not whole pairs in ", heads, " heads"));
  }
  const std::span<const std::byte> bytes = file->bytes(*tensor);
  const std::byte* data = bytes.data();
  const io::GgmlTypeInfo& type = *tensor->type;
  if (heads > 0 && shape.ndim() == 1 && type.block > 1) {
    throw FormatError(
        file->path(), static_cast<int64_t>(tensor->begin),
        concat(name, ": a vector in blocks of ", type.name, " has no rows to put back"));
  }
  Stored stored{file->file(), tensor->name,        bytes, shape.numel() / type.block,
                type.block,   kGrain / type.block, {}};
  if (heads == 0) {
    stored.decode = [&type, data, dtype](int64_t begin, int64_t end, void* out) {
      io::dequantize(type, data + begin * type.bytes, 0, (end - begin) * type.block, dtype, out);
    };
  } else if (shape.numel() > 0) {
    const int64_t columns = shape.numel() / rows, per_head = rows / heads, half = per_head / 2;
    stored.units = rows;
    stored.unit_elements = columns;
    stored.grain = std::max<int64_t>(1, kGrain / columns);
    stored.decode = [=, &type](int64_t begin, int64_t end, void* out) {
      const int64_t row_bytes = columns / type.block * type.bytes;
      for (int64_t row = begin; row < end; ++row) {
        const int64_t in_head = row % per_head;
        const int64_t source = row - in_head + 2 * (in_head % half) + in_head / half;
        io::dequantize(type, data + source * row_bytes, 0, columns, dtype,
                       static_cast<char*>(out) + (row - begin) * columns * dtype_size(dtype));
      }
    };
  }
  return read_stored(engine, shape, dtype, std::move(stored), check_finite);
}

// ---- writing ------------------------------------------------------------------------------------

Napi::Value create_safetensors(Env& env, std::string path, std::vector<std::string> names,
                               std::vector<DType> dtypes, std::vector<Shape> shapes,
                               std::vector<std::string> metadata_keys,
                               std::vector<std::string> metadata_values) {
  if (dtypes.size() != names.size() || shapes.size() != names.size() ||
      metadata_keys.size() != metadata_values.size()) {
    throw ArgumentError("createSafetensors: the lists differ in length");
  }
  std::vector<io::SafetensorsSpec> specs;
  for (size_t i = 0; i < names.size(); ++i) {
    specs.push_back({names[i], dtypes[i], {shapes[i].begin(), shapes[i].end()}});
  }
  std::map<std::string, std::string> metadata;
  for (size_t i = 0; i < metadata_keys.size(); ++i) metadata[metadata_keys[i]] = metadata_values[i];
  return wrap(env, WriterBox{std::make_shared<SafetensorsWriter>(path, specs, metadata)});
}

// All of a file's writing runs on the CPU's stream, whatever device a tensor is on: in that
// stream's order, a failure surfacing where the caller awaits it.
void write_safetensors(Env& env, WriterBox* box, std::string name, Tensor t) {
  const std::shared_ptr<SafetensorsWriter>& writer = box->get();
  const Tensor source = to_device(contiguous(t.detach()), env.engines().cpu());
  const auto count = static_cast<size_t>(source.bytes());
  launch("write", {source}, {}, [writer, name, count](Launch& l) {
    writer->write(name, std::span(static_cast<const std::byte*>(l.in(0)->data), count));
    return 0;
  });
}

template <typename T>
Napi::Promise commit(Env& env, Box<T>* box) {
  env.engines().refuse_recording();
  const std::shared_ptr<T>& writer = box->get();
  Engine& cpu = env.engines().cpu();
  cpu.stream().enqueue([writer, &cpu] {
    cpu.refuse_changed();  // the file gets its name before the sync
    writer->commit();
  });
  return env.promise_after(env.engines().all(), Napi::Value());
}

// In stream order too, after the writes that may still use it.
template <typename T>
Napi::Promise abandon(Env& env, Box<T>* box) {
  const std::shared_ptr<T> writer = std::move(box->object);
  return env.promise_of(env.engines().cpu(), [writer] {
    if (writer) writer->abandon();
  });
}

Napi::Promise commit_safetensors(Env& env, WriterBox* box) {
  return commit(env, box);
}
Napi::Promise abandon_safetensors(Env& env, WriterBox* box) {
  return abandon(env, box);
}
Napi::Promise commit_gguf(Env& env, GgufWriterBox* box) {
  return commit(env, box);
}
Napi::Promise abandon_gguf(Env& env, GgufWriterBox* box) {
  return abandon(env, box);
}

// The entries of the metadata are given as they stand in a file.
Napi::Value create_gguf(Env& env, std::string path, Napi::Uint8Array metadata, int64_t entries,
                        int64_t alignment, std::vector<std::string> names,
                        std::vector<std::string> types, std::vector<Shape> shapes) {
  if (types.size() != names.size() || shapes.size() != names.size()) {
    throw ArgumentError("createGguf: the lists differ in length");
  }
  std::vector<io::GgufSpec> specs;
  for (size_t i = 0; i < names.size(); ++i) {
    const io::GgmlTypeInfo* type = io::find_ggml_type(types[i]);
    if (!type) throw ArgumentError(concat("createGguf: ", types[i], " is not a ggml type"));
    specs.push_back({names[i], type, {shapes[i].begin(), shapes[i].end()}});
  }
  const auto bytes = std::as_bytes(std::span(metadata.Data(), metadata.ElementLength()));
  const io::GgufEntries all{bytes, static_cast<uint64_t>(entries),
                            static_cast<uint64_t>(alignment)};
  return wrap(env, GgufWriterBox{std::make_shared<GgufWriter>(path, all, specs)});
}

// Units of the encoding, whose squared errors are summed in order, whatever the threads.
constexpr int64_t kUnitElements = 1 << 13;  // whole blocks of every type
constexpr int64_t kUnitsAtOnce = 256;

// Encodes f32 values chunk by chunk into the file. Returns the sum of the squared differences
// between them and what the file holds.
double encode_into(Launch& l, GgufWriter& writer, const std::string& name, const float* values) {
  const GgufWriter::Slot& slot = writer.slot(name);
  const io::GgmlTypeInfo& type = *slot.type;
  const auto encode = io::find_block_encoder(static_cast<io::GgmlType>(type.id));
  const auto decode = io::find_block_decoder(static_cast<io::GgmlType>(type.id));
  const int64_t blocks = slot.elements / type.block, unit_blocks = kUnitElements / type.block;
  std::vector<std::byte> encoded(
      static_cast<size_t>(std::min(blocks, kUnitsAtOnce * unit_blocks) * type.bytes));
  double sum = 0;
  for (int64_t first = 0; first < blocks; first += kUnitsAtOnce * unit_blocks) {
    const int64_t count = std::min(blocks - first, kUnitsAtOnce * unit_blocks);
    const int64_t units = (count + unit_blocks - 1) / unit_blocks;
    double errors[kUnitsAtOnce];
    int64_t bad[kUnitsAtOnce];
    parallel_for(l.ctx, units, 1, [&](int64_t from, int64_t to) {
      float decoded[kUnitElements];
      for (int64_t unit = from; unit < to; ++unit) {
        const int64_t begin = unit * unit_blocks, n = std::min(unit_blocks, count - begin);
        const float* x = values + (first + begin) * type.block;
        std::byte* out = encoded.data() + begin * type.bytes;
        bad[unit] = io::find_non_finite(DType::kF32, x, n * type.block);
        errors[unit] = 0;
        if (bad[unit] >= 0) continue;
        encode(x, n, out);
        decode(out, n, decoded);
        bad[unit] = io::find_non_finite(DType::kF32, decoded, n * type.block);
        for (int64_t i = 0; i < n * type.block; ++i) {
          const double difference = static_cast<double>(decoded[i]) - static_cast<double>(x[i]);
          errors[unit] += difference * difference;
        }
      }
    });
    for (int64_t unit = 0; unit < units; ++unit) {
      if (bad[unit] >= 0) {
        const int64_t at = (first + unit * unit_blocks) * type.block + bad[unit];
        throw ArgumentError(concat(writer.path(), ": element ", at, " of ", name, ", ", values[at],
                                   ", has no value in ", type.name, "; write F32 or BF16"));
      }
      sum += errors[unit];
    }
    writer.write(name, static_cast<uint64_t>(first * type.bytes),
                 std::span(encoded.data(), static_cast<size_t>(count * type.bytes)));
  }
  return sum;
}

// Encodes a tensor of f32 on the CPU's stream, as write_safetensors() does.
Tensor write_gguf(Env& env, GgufWriterBox* box, std::string name, Tensor t) {
  const std::shared_ptr<GgufWriter>& writer = box->get();
  const GgufWriter::Slot& slot = writer->slot(name);
  if (!io::find_block_encoder(static_cast<io::GgmlType>(slot.type->id))) {
    throw UnsupportedError(concat("gguf: ", name, " cannot be written as ", slot.type->name,
                                  "; supported: ", io::encoded_ggml_types()));
  }
  if (t.dtype() != DType::kF32 || t.numel() != slot.elements) {
    throw ArgumentError(concat("gguf: ", name, " needs ", slot.elements, " values in f32"));
  }
  Engine& cpu = env.engines().cpu();
  const Tensor source = to_device(contiguous(t.detach()), cpu);
  const Tensor error = Tensor::empty(cpu, Shape{1}, DType::kF64);
  launch("write", {source}, {error}, [writer, name](Launch& l) {
    const auto* values = static_cast<const float*>(l.in(0)->data);
    *static_cast<double*>(l.out(0)->data) = encode_into(l, *writer, name, values);
    return 0;
  });
  return error;
}

// Copies the bytes of a tensor of another file, of the same type and size.
void copy_gguf(Env& env, GgufWriterBox* box, std::string name, GgufBox* from, std::string source) {
  const std::shared_ptr<GgufWriter>& writer = box->get();
  const std::shared_ptr<const GgufFile>& file = from->get();
  const GgufTensor* tensor = file->find(source);
  if (!tensor) throw FormatError(file->path(), -1, concat("holds no tensor ", source));
  const GgufWriter::Slot& slot = writer->slot(name);
  if (slot.type != tensor->type || slot.bytes != tensor->bytes) {
    throw ArgumentError(concat("gguf: ", name, " differs from ", source, " in type or size"));
  }
  env.engines().refuse_recording();
  Engine& cpu = env.engines().cpu();
  cpu.stream().enqueue([writer, name, file, tensor, &cpu] {
    cpu.depend_on(file->file());
    io::PartDigests digests(file->bytes(*tensor));
    digests.compute(0, digests.blocks());
    file->file()->remember(std::move(digests));
    writer->write(name, 0, file->bytes(*tensor));
  });
}

}  // namespace

void bind_io(Module& m) {
  op(m, "openSafetensors", &open_safetensors, {"path"});
  op(m, "closeSafetensors", &close_safetensors, {"file"});
  op(m, "safetensorsHeader", &safetensors_header, {"file"});
  op(m, "safetensorsIndex", &safetensors_index, {"path"});
  op(m, "readSafetensors", &read_safetensors, {"file", "name", "dtype", "share", "checkFinite"});
  op(m, "openGguf", &open_gguf, {"path"});
  op(m, "closeGguf", &close_gguf, {"file"});
  op(m, "ggufHeader", &gguf_header, {"file"});
  op(m, "ggufValue", &gguf_value, {"file", "index"});
  op(m, "ggufEntry", &gguf_entry, {"file", "index"});
  op(m, "readGguf", &read_gguf, {"file", "name", "dtype", "heads", "checkFinite"});
  op(m, "createSafetensors", &create_safetensors,
     {"path", "names", "dtypes", "shapes", "metadataKeys", "metadataValues"});
  op(m, "writeSafetensors", &write_safetensors, {"writer", "name", "x"});
  op(m, "commitSafetensors", &commit_safetensors, {"writer"});
  op(m, "abandonSafetensors", &abandon_safetensors, {"writer"});
  op(m, "createGguf", &create_gguf,
     {"path", "metadata", "entries", "alignment", "names", "types", "shapes"});
  op(m, "writeGguf", &write_gguf, {"writer", "name", "x"});
  op(m, "copyGguf", &copy_gguf, {"writer", "name", "file", "source"});
  op(m, "commitGguf", &commit_gguf, {"writer"});
  op(m, "abandonGguf", &abandon_gguf, {"writer"});
}

}  // namespace balora::binding
