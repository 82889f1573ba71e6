#include "io/safetensors_writer.h"

#include <algorithm>
#include <cstring>

#include "io/json_cursor.h"
#include "io/safetensors.h"
#include "tensor/errors.h"
#include "tensor/shape.h"

namespace balora::io {
namespace {

// The reference sorts by its dtype enumeration, descending.
int dtype_rank(DType dtype) {
  switch (dtype) {
    case DType::kI64:
      return 6;
    case DType::kF64:
      return 5;
    case DType::kF32:
      return 4;
    case DType::kI32:
      return 3;
    case DType::kBF16:
      return 2;
    case DType::kF16:
      return 1;
    default:
      return 0;
  }
}

uint64_t bytes_of(const SafetensorsSpec& spec) {
  const std::optional<int64_t> elements = checked_numel(spec.shape);
  if (!elements)
    throw ArgumentError(concat("safetensors: ", spec.name, " has an impossible shape"));
  return static_cast<uint64_t>(*elements * dtype_size(spec.dtype));
}

std::string describe(const SafetensorsSpec& spec, uint64_t begin, uint64_t end) {
  std::string text = json_quote(spec.name) + ":{\"dtype\":\"" + safetensors_dtype_name(spec.dtype) +
                     "\",\"shape\":[";
  for (size_t i = 0; i < spec.shape.size(); ++i) {
    text += (i ? "," : "") + std::to_string(spec.shape[i]);
  }
  return text + concat("],\"data_offsets\":[", begin, ",", end, "]}");
}

std::string describe(const std::map<std::string, std::string>& metadata) {
  std::string text = "\"__metadata__\":{";
  for (const auto& [key, value] : metadata) {
    if (text.back() != '{') text += ',';
    text += json_quote(key) + ":" + json_quote(value);
  }
  return text + "}";
}

void check_text(const std::string& text) {
  if (find_invalid_utf8(text) != std::string::npos) {
    throw ArgumentError("safetensors: names and metadata must be valid UTF-8");
  }
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::string& path,
                                     const std::vector<SafetensorsSpec>& tensors,
                                     const std::map<std::string, std::string>& metadata,
                                     const FileCalls& calls) {
  std::vector<const SafetensorsSpec*> order;
  for (const SafetensorsSpec& spec : tensors) order.push_back(&spec);
  std::sort(order.begin(), order.end(), [](const SafetensorsSpec* a, const SafetensorsSpec* b) {
    const int rank_a = dtype_rank(a->dtype), rank_b = dtype_rank(b->dtype);
    return rank_a != rank_b ? rank_a > rank_b : a->name < b->name;
  });

  std::string header = "{";
  if (!metadata.empty()) header += describe(metadata);
  uint64_t end = 0;
  for (const SafetensorsSpec* spec : order) {
    const uint64_t begin = end;
    end = begin + bytes_of(*spec);  // less than 2^56 more
    if (end > INT64_MAX / 2) {
      throw ArgumentError("safetensors: the tensors' sizes overflow");
    }
    if (spec->name == "__metadata__" ||
        !slots_.emplace(spec->name, Slot{begin, end - begin, false}).second) {
      throw ArgumentError(concat("safetensors: the name ", spec->name, " is reserved or repeated"));
    }
    if (header.size() > 1) header += ',';
    header += describe(*spec, begin, end);
  }
  header += '}';
  check_text(header);
  header.resize((header.size() + 7) / 8 * 8, ' ');
  if (header.size() > kMaxSafetensorsHeader) {
    throw ArgumentError("safetensors: the header exceeds the format's cap");
  }

  const uint64_t length = header.size(), data_begin = sizeof length + length;
  for (auto& [name, slot] : slots_) slot.begin += data_begin;
  file_ = std::make_unique<AtomicFile>(path, data_begin + end, calls);
  file_->write(0, std::as_bytes(std::span(&length, 1)));
  file_->write(sizeof length, std::as_bytes(std::span(header.data(), header.size())));
}

void SafetensorsWriter::write(const std::string& name, std::span<const std::byte> data) {
  const auto found = slots_.find(name);
  if (found == slots_.end() || found->second.written) {
    throw ArgumentError(concat("safetensors: ", name, " was not announced or is already written"));
  }
  if (data.size() != found->second.bytes) {
    throw ArgumentError(
        concat("safetensors: ", name, " needs ", found->second.bytes, " bytes, got ", data.size()));
  }
  file_->write(found->second.begin, data);
  found->second.written = true;
}

void SafetensorsWriter::commit() {
  for (const auto& [name, slot] : slots_) {
    if (!slot.written) throw ArgumentError(concat("safetensors: ", name, " was never written"));
  }
  file_->commit();
}

}  // namespace balora::io
