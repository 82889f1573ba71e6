#include "io/gguf_writer.h"

#include <bit>
#include <cstring>

#include "tensor/errors.h"
#include "tensor/shape.h"

namespace balora::io {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is written in host order");

constexpr uint32_t kVersion = 3;
constexpr size_t kMaxDims = 4;  // GGML_MAX_DIMS

template <typename T>
void append(std::string& out, T value) {
  char bytes[sizeof value];
  std::memcpy(bytes, &value, sizeof value);
  out.append(bytes, sizeof value);
}

uint64_t padded(uint64_t bytes, uint64_t alignment) {
  return (bytes + alignment - 1) & ~(alignment - 1);
}

GgufWriter::Slot slot_of(const GgufSpec& spec, uint64_t begin) {
  const std::optional<int64_t> elements = checked_numel(spec.shape);
  if (!elements || spec.shape.empty() || spec.shape.size() > kMaxDims) {
    throw ArgumentError(concat("gguf: ", spec.name, " has an impossible shape"));
  }
  const GgmlTypeInfo& type = *spec.type;
  if (spec.shape.back() % type.block != 0) {
    throw ArgumentError(concat("gguf: the rows of ", spec.name, " have ", spec.shape.back(),
                               " elements, which are no whole blocks of ", type.block, " (",
                               type.name, ")"));
  }
  const int64_t bytes = *elements / type.block * type.bytes;
  return {&type, *elements, begin, static_cast<uint64_t>(bytes)};
}

void append_info(std::string& out, const GgufSpec& spec, uint64_t offset) {
  append(out, static_cast<uint64_t>(spec.name.size()));
  out += spec.name;
  append(out, static_cast<uint32_t>(spec.shape.size()));
  for (auto extent = spec.shape.rbegin(); extent != spec.shape.rend(); ++extent) {
    append(out, static_cast<uint64_t>(*extent));
  }
  append(out, spec.type->id);
  append(out, offset);
}

}  // namespace

GgufWriter::GgufWriter(const std::string& path, const GgufEntries& metadata,
                       const std::vector<GgufSpec>& tensors, const FileCalls& calls) {
  const uint64_t alignment = metadata.alignment;
  if (!std::has_single_bit(alignment)) {
    throw ArgumentError(concat("gguf: the alignment must be a power of two, got ", alignment));
  }
  std::string header = "GGUF";
  append(header, kVersion);
  append(header, static_cast<uint64_t>(tensors.size()));
  append(header, metadata.count);
  if (!metadata.bytes.empty()) {
    header.append(reinterpret_cast<const char*>(metadata.bytes.data()), metadata.bytes.size());
  }
  uint64_t end = 0;
  for (const GgufSpec& spec : tensors) {
    const Slot slot = slot_of(spec, end);
    if (!slots_.emplace(spec.name, slot).second) {
      throw ArgumentError(concat("gguf: the name ", spec.name, " is repeated"));
    }
    append_info(header, spec, end);
    end = padded(end + slot.bytes, alignment);  // less than 2^57 more
    if (end > INT64_MAX / 2) throw ArgumentError("gguf: the tensors' sizes overflow");
  }
  header.resize(padded(header.size(), alignment), '\0');
  file_ = std::make_unique<AtomicFile>(path, header.size() + end, calls);
  file_->write(0, std::as_bytes(std::span(header.data(), header.size())));
  const std::string zeros(alignment, '\0');
  for (auto& [name, slot] : slots_) {
    slot.begin += header.size();
    const uint64_t after = slot.begin + slot.bytes;
    file_->write(after, std::as_bytes(std::span(zeros.data(), padded(after, alignment) - after)));
  }
}

const std::string& GgufWriter::checked(const std::string& name) const {
  if (!slots_.contains(name)) throw ArgumentError(concat("gguf: ", name, " was not announced"));
  return name;
}

void GgufWriter::write(const std::string& name, uint64_t offset, std::span<const std::byte> data) {
  Slot& slot = slots_.at(checked(name));
  if (offset > slot.bytes || data.size() > slot.bytes - slot.written) {
    throw ArgumentError(concat("gguf: ", name, " has ", slot.bytes, " bytes, and ", slot.written,
                               " of them are written; ", data.size(), " more do not fit"));
  }
  file_->write(slot.begin + offset, data);
  slot.written += data.size();
}

void GgufWriter::commit() {
  for (const auto& [name, slot] : slots_) {
    if (slot.written != slot.bytes) {
      throw ArgumentError(concat("gguf: ", slot.written, " of the ", slot.bytes, " bytes of ", name,
                                 " were written"));
    }
  }
  file_->commit();
}

}  // namespace balora::io
