// Weight files as JS reads them: headers as plain objects, tensors read on the engine's stream or
// aliased from the map.
#include <algorithm>
#include <cstring>
#include <functional>
#include <span>
#include <string_view>

#include "binding/bind.h"
#include "binding/file_boxes.h"
#include "binding/stored.h"
#include "engine/launch.h"
#include "io/dequantize.h"
#include "io/encodings.h"
#include "ops/ops.h"

namespace balora::binding {

using io::GgufFile;
using io::GgufTensor;
using io::SafetensorsEntry;
using io::SafetensorsFile;

namespace {

constexpr int64_t kGrain = 1 << 15;  // elements a thread converts at least

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
Napi::Value identity_to_js(Napi::Env napi, const io::FileFacts& identity) {
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
  object.Set("identity", identity_to_js(napi, file->get()->file()->facts()));
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
  object.Set("identity", identity_to_js(napi, file->get()->file()->facts()));
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
  const auto& entry = file->get()->header().metadata[entry_at(*file->get(), index)];
  return file->get()->file()->parsed([&](std::span<const std::byte>) {
    return MetadataReader(Napi::Env(env.napi()), *file->get(), entry.first).read(entry.second);
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

// The bytes of a tensor of any dtype, (n) u8: the file's own pages where the engine can read them.
Tensor read_safetensors_bytes(Engine& engine, SafetensorsBox* box, std::string name) {
  const std::shared_ptr<const SafetensorsFile>& file = box->get();
  const SafetensorsEntry* entry = file->find(name);
  if (!entry)
    throw FormatError(file->path(), -1,
                      concat("holds no tensor ", name, "; name one of its tensors"));
  const std::span<const std::byte> bytes = file->bytes(*entry);
  const Shape shape{static_cast<int64_t>(bytes.size())};
  Stored stored{file->file(),
                entry->name,
                bytes,
                shape.numel(),
                1,
                kGrain,
                [data = bytes.data()](int64_t begin, int64_t end, void* out) {
                  std::memcpy(out, data + begin, static_cast<size_t>(end - begin));
                }};
  const auto read = engine.host_memory() ? &alias_stored : &read_stored;
  return read(engine, shape, DType::kU8, std::move(stored), false);
}

// The row of the file that is row `row` of the tensor, where rows of `heads` heads, `rows` in all,
// are put back from the llama architecture's interleaved order to HF's halves: within a head of D
// rows, stored row 2i + j is row j*D/2 + i (convert_hf_to_gguf.py, LlamaModel.permute).
int64_t interleaved_row(int64_t row, int64_t rows, int64_t heads) {
  const int64_t per_head = rows / heads, half = per_head / 2, in_head = row % per_head;
  return row - in_head + 2 * (in_head % half) + in_head / half;
}

// A tensor of a GGUF file that is decoded, its shape, and its rows if they are in heads.
struct GgufPlace {
  std::shared_ptr<const GgufFile> file;
  const GgufTensor* tensor;
  Shape shape;
  int64_t rows;
};

GgufPlace gguf_place(GgufBox* box, const std::string& name, DType dtype, int64_t heads) {
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
  const io::GgmlTypeInfo& type = *tensor->type;
  if (heads > 0 && shape.ndim() == 1 && type.block > 1) {
    throw FormatError(
        file->path(), static_cast<int64_t>(tensor->begin),
        concat(name, ": a vector in blocks of ", type.name, " has no rows to put back"));
  }
  return {file, tensor, shape, rows};
}

// heads > 0: rows are put back, see interleaved_row().
Tensor read_gguf(Engine& engine, GgufBox* box, std::string name, DType dtype, int64_t heads,
                 bool check_finite) {
  const auto [file, tensor, shape, rows] = gguf_place(box, name, dtype, heads);
  const std::span<const std::byte> bytes = file->bytes(*tensor);
  const std::byte* data = bytes.data();
  const io::GgmlTypeInfo& type = *tensor->type;
  Stored stored{.file = file->file(),
                .name = tensor->name,
                .bytes = bytes,
                .units = shape.numel() / type.block,
                .unit_elements = type.block,
                .grain = kGrain / type.block};
  if (heads == 0) {
    stored.decode = [&type, data, dtype](int64_t begin, int64_t end, void* out) {
      io::dequantize(type, data + begin * type.bytes, 0, (end - begin) * type.block, dtype, out);
    };
  } else if (shape.numel() > 0) {
    const int64_t columns = shape.numel() / rows;
    stored.units = rows;
    stored.unit_elements = columns;
    stored.grain = std::max<int64_t>(1, kGrain / columns);
    stored.decode = [=, &type, rows = rows](int64_t begin, int64_t end, void* out) {
      const int64_t row_bytes = columns / type.block * type.bytes;
      for (int64_t row = begin; row < end; ++row) {
        io::dequantize(type, data + interleaved_row(row, rows, heads) * row_bytes, 0, columns,
                       dtype,
                       static_cast<char*>(out) + (row - begin) * columns * dtype_size(dtype));
      }
    };
  }
  return read_stored(engine, shape, dtype, std::move(stored), check_finite);
}

// The same, kept in its blocks and decoded to `dtype` as it is used.
Tensor read_gguf_blocks(Engine& engine, GgufBox* box, std::string name, DType dtype, int64_t heads,
                        bool check_finite) {
  const auto [file, tensor, shape, rows] = gguf_place(box, name, DType::kF32, heads);
  if (!is_float(dtype)) {
    throw ArgumentError(
        concat("readGgufBlocks: dtype must be a float type, got ", dtype_name(dtype)));
  }
  StoredBlocks stored{.file = file->file(),
                      .name = tensor->name,
                      .bytes = file->bytes(*tensor),
                      .encoding = io::ggml_encoding(*tensor->type)};
  if (heads > 0) {
    stored.rows = [rows = rows, heads](int64_t row) { return interleaved_row(row, rows, heads); };
  }
  return blocks_stored(engine, shape, dtype, std::move(stored), check_finite);
}

}  // namespace

void bind_io(Module& m) {
  op(m, "openSafetensors", &open_safetensors, {"path"});
  op(m, "closeSafetensors", &close_safetensors, {"file"});
  op(m, "safetensorsHeader", &safetensors_header, {"file"});
  op(m, "safetensorsIndex", &safetensors_index, {"path"});
  op(m, "readSafetensors", &read_safetensors, {"file", "name", "dtype", "share", "checkFinite"});
  op(m, "readSafetensorsBytes", &read_safetensors_bytes, {"file", "name"});
  op(m, "openGguf", &open_gguf, {"path"});
  op(m, "closeGguf", &close_gguf, {"file"});
  op(m, "ggufHeader", &gguf_header, {"file"});
  op(m, "ggufValue", &gguf_value, {"file", "index"});
  op(m, "ggufEntry", &gguf_entry, {"file", "index"});
  op(m, "readGguf", &read_gguf, {"file", "name", "dtype", "heads", "checkFinite"});
  op(m, "readGgufBlocks", &read_gguf_blocks, {"file", "name", "dtype", "heads", "checkFinite"});
}

}  // namespace balora::binding
