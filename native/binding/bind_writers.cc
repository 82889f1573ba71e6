// Weight files written from the CPU's stream, whatever device a tensor is on: in that stream's
// order, a failure surfacing where the caller awaits it.
#include <algorithm>
#include <cstring>
#include <map>
#include <span>

#include "binding/bind.h"
#include "binding/file_boxes.h"
#include "engine/launch.h"
#include "io/dequantize.h"
#include "io/quantize.h"
#include "kernels/cpu/runtime/parallel.h"
#include "ops/ops.h"

namespace balora::binding {

using io::GgufFile;
using io::GgufTensor;
using io::GgufWriter;
using io::SafetensorsWriter;

namespace {

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
  return wrap(env,
              SafetensorsWriterBox{std::make_shared<SafetensorsWriter>(path, specs, metadata)});
}

void write_safetensors(Env& env, SafetensorsWriterBox* box, std::string name, Tensor t) {
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
  Tensor error = Tensor::empty(cpu, Shape{1}, DType::kF64);
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

void bind_writers(Module& m) {
  op(m, "createSafetensors", &create_safetensors,
     {"path", "names", "dtypes", "shapes", "metadataKeys", "metadataValues"});
  op(m, "writeSafetensors", &write_safetensors, {"writer", "name", "x"});
  op(m, "commitSafetensors", &commit<SafetensorsWriter>, {"writer"});
  op(m, "abandonSafetensors", &abandon<SafetensorsWriter>, {"writer"});
  op(m, "createGguf", &create_gguf,
     {"path", "metadata", "entries", "alignment", "names", "types", "shapes"});
  op(m, "writeGguf", &write_gguf, {"writer", "name", "x"});
  op(m, "copyGguf", &copy_gguf, {"writer", "name", "file", "source"});
  op(m, "commitGguf", &commit<GgufWriter>, {"writer"});
  op(m, "abandonGguf", &abandon<GgufWriter>, {"writer"});
}

}  // namespace balora::binding
