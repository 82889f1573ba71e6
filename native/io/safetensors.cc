#include "io/safetensors.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "io/json_cursor.h"
#include "tensor/errors.h"
#include "tensor/shape.h"

namespace balora::io {
namespace {

// Order and widths of the reference implementation's Dtype.
const SafetensorsDType kDTypes[] = {
    {"BOOL", 8, std::nullopt},
    {"F4", 4, std::nullopt},
    {"F6_E2M3", 6, std::nullopt},
    {"F6_E3M2", 6, std::nullopt},
    {"U8", 8, DType::kU8},
    {"I8", 8, std::nullopt},
    {"F8_E5M2", 8, std::nullopt},
    {"F8_E4M3", 8, std::nullopt},
    {"F8_E8M0", 8, std::nullopt},
    {"F8_E4M3FNUZ", 8, std::nullopt},
    {"F8_E5M2FNUZ", 8, std::nullopt},
    {"I16", 16, std::nullopt},
    {"U16", 16, std::nullopt},
    {"F16", 16, DType::kF16},
    {"BF16", 16, DType::kBF16},
    {"I32", 32, DType::kI32},
    {"U32", 32, std::nullopt},
    {"F32", 32, DType::kF32},
    {"C64", 64, std::nullopt},
    {"F64", 64, DType::kF64},
    {"I64", 64, DType::kI64},
    {"U64", 64, std::nullopt},
};

void parse_metadata(JsonCursor& json, SafetensorsHeader& header) {
  json.object([&](const std::string& key, uint64_t at) {
    if (json.peek() != '"') json.fail(concat("__metadata__.", key, " must be a string"));
    if (!header.metadata.emplace(key, json.string()).second) {
      json.fail_at(at, concat("__metadata__.", key, " occurs twice"));
    }
  });
}

struct RawEntry {
  SafetensorsEntry entry;
  uint64_t at = 0;  // where its key stands in the file
  int bits = 0;
};

RawEntry parse_entry(JsonCursor& json, const std::string& name, uint64_t at) {
  RawEntry raw;
  raw.entry.name = name;
  raw.at = at;
  std::set<std::string> seen;
  std::vector<uint64_t> offsets;
  if (json.peek() != '{') json.fail(concat(name, " must be an object"));
  json.object([&](const std::string& key, uint64_t key_at) {
    if (!seen.insert(key).second) json.fail_at(key_at, concat(name, ".", key, " occurs twice"));
    if (key == "dtype") {
      if (json.peek() != '"') json.fail(concat(name, ".dtype must be a string"));
      raw.entry.dtype_name = json.string();
      const SafetensorsDType* dtype = find_safetensors_dtype(raw.entry.dtype_name);
      if (!dtype)
        json.fail_at(key_at, concat(name, ".dtype \"", raw.entry.dtype_name,
                                    "\" is not a dtype of the format"));
      raw.entry.dtype = dtype->dtype;
      raw.bits = dtype->bits;
    } else if (key == "shape") {
      if (json.peek() != '[') json.fail(concat(name, ".shape must be an array"));
      const std::string field = name + ".shape[i]";
      json.array([&] {
        raw.entry.shape.push_back(static_cast<int64_t>(json.unsigned_integer(field.c_str())));
      });
    } else if (key == "data_offsets") {
      if (json.peek() != '[') json.fail(concat(name, ".data_offsets must be an array"));
      const std::string field = name + ".data_offsets[i]";
      json.array([&] { offsets.push_back(json.unsigned_integer(field.c_str())); });
    } else {
      json.fail_at(key_at, concat(name, ".", key, " is not a field of the format"));
    }
  });
  for (const char* key : {"dtype", "shape", "data_offsets"}) {
    if (!seen.count(key)) json.fail_at(at, concat(name, ".", key, " is missing"));
  }
  if (offsets.size() != 2 || offsets[0] > offsets[1]) {
    json.fail_at(at, concat(name, ".data_offsets must be [begin, end] with begin <= end"));
  }
  raw.entry.begin = offsets[0];
  raw.entry.end = offsets[1];
  return raw;
}

// Bytes of the tensor by its shape, or nothing for a shape that no tensor can have, or bits that
// are not whole bytes.
std::optional<uint64_t> byte_size(const RawEntry& raw) {
  const std::optional<int64_t> elements = checked_numel(raw.entry.shape);
  if (!elements) return std::nullopt;
  const uint64_t bits = static_cast<uint64_t>(*elements) * static_cast<uint64_t>(raw.bits);
  if (bits % 8 != 0) return std::nullopt;
  return bits / 8;
}

// Offsets still relative to the data section; makes them absolute.
void check_layout(const JsonCursor& json, std::vector<RawEntry>& raws, uint64_t data_begin,
                  uint64_t data_size) {
  std::stable_sort(raws.begin(), raws.end(), [](const RawEntry& a, const RawEntry& b) {
    return std::pair(a.entry.begin, a.entry.end) < std::pair(b.entry.begin, b.entry.end);
  });
  uint64_t expected = 0;
  for (RawEntry& raw : raws) {
    SafetensorsEntry& entry = raw.entry;
    const std::string field = entry.name + ".data_offsets";
    if (entry.begin != expected) {
      json.fail_at(raw.at, concat(field, " begins at ", entry.begin, ", expected ", expected,
                                  entry.begin < expected ? " (tensors overlap)" : " (a hole)"));
    }
    const std::optional<uint64_t> size = byte_size(raw);
    if (!size) {
      json.fail_at(raw.at, concat(entry.name, ".shape has too many elements, or not whole bytes"));
    }
    if (entry.end - entry.begin != *size) {
      json.fail_at(raw.at, concat(field, " holds ", entry.end - entry.begin,
                                  " bytes, its dtype and shape need ", *size));
    }
    if (entry.end > data_size) {
      json.fail_at(raw.at, concat(field, " ends at ", entry.end, " of ", data_size,
                                  " data bytes: the file is truncated"));
    }
    expected = entry.end;
    entry.begin += data_begin;
    entry.end += data_begin;
  }
  if (expected != data_size) {
    json.fail_at(data_begin + expected,
                 concat(data_size - expected, " bytes follow the last tensor"));
  }
}

}  // namespace

const SafetensorsDType* find_safetensors_dtype(std::string_view name) {
  for (const SafetensorsDType& dtype : kDTypes) {
    if (name == dtype.name) return &dtype;
  }
  return nullptr;
}

const char* safetensors_dtype_name(DType dtype) {
  for (const SafetensorsDType& row : kDTypes) {
    if (row.dtype == dtype) return row.name;
  }
  throw NativeError("safetensors: a dtype without a name");
}

SafetensorsHeader parse_safetensors(const std::string& path, std::span<const std::byte> bytes) {
  uint64_t length = 0;
  if (bytes.size() < sizeof length) {
    throw FormatError(path, 0,
                      concat("header length: the file has ", bytes.size(),
                             " bytes, a safetensors file at least 8"));
  }
  std::memcpy(&length, bytes.data(), sizeof length);
  const uint64_t available = bytes.size() - sizeof length;
  if (length > kMaxSafetensorsHeader) {
    throw FormatError(path, 0,
                      concat("header length: ", length, " bytes exceeds the cap of ",
                             kMaxSafetensorsHeader, "; check that this is a safetensors file"));
  }
  if (length > available) {
    throw FormatError(path, 0,
                      concat("header length: ", length, " bytes, but only ", available, " follow"));
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + sizeof length, length);
  JsonCursor json(path, sizeof length, "header", text);
  if (text.empty() || text[0] != '{') json.fail("must begin with '{'");

  SafetensorsHeader header;
  std::vector<RawEntry> raws;
  std::set<std::string> names;
  json.object([&](const std::string& key, uint64_t at) {
    if (!names.insert(key).second) json.fail_at(at, concat(key, " occurs twice"));
    if (key == "__metadata__") {
      if (json.peek() != '{') json.fail("__metadata__ must be an object");
      parse_metadata(json, header);
    } else {
      raws.push_back(parse_entry(json, key, at));
    }
  });
  json.end();
  check_layout(json, raws, sizeof length + length, available - length);
  header.entries.reserve(raws.size());
  for (RawEntry& raw : raws) header.entries.push_back(std::move(raw.entry));
  return header;
}

std::shared_ptr<const SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  auto result = std::make_shared<SafetensorsFile>();
  result->file_ = MappedFile::open(path);
  result->header_ = result->file_->parsed(
      [&path](std::span<const std::byte> bytes) { return parse_safetensors(path, bytes); });
  for (size_t i = 0; i < result->header_.entries.size(); ++i) {
    result->index_.emplace(result->header_.entries[i].name, i);
  }
  return result;
}

const SafetensorsEntry* SafetensorsFile::find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &header_.entries[found->second];
}

std::map<std::string, std::string> parse_safetensors_index(const std::string& path,
                                                           std::string_view text) {
  JsonCursor json(path, 0, "index", text);
  std::map<std::string, std::string> shards;
  bool found = false;
  json.object([&](const std::string& key, uint64_t at) {
    if (key != "weight_map") return json.skip_value();
    if (found) json.fail_at(at, "weight_map occurs twice");
    found = true;
    if (json.peek() != '{') json.fail("weight_map must be an object");
    json.object([&](const std::string& name, uint64_t name_at) {
      if (json.peek() != '"') json.fail(concat("weight_map[\"", name, "\"] must be a string"));
      const std::string shard = json.string();
      if (shard.empty() || shard == "." || shard == ".." ||
          shard.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos) {
        json.fail_at(name_at, concat("weight_map[\"", name, "\"]: \"", shard,
                                     "\" must name a file in the same folder"));
      }
      if (!shards.emplace(name, shard).second) {
        json.fail_at(name_at, concat("weight_map[\"", name, "\"] occurs twice"));
      }
    });
  });
  json.end();
  if (!found) json.fail_at(0, "weight_map is missing");
  if (shards.empty()) json.fail_at(0, "weight_map is empty");
  return shards;
}

}  // namespace balora::io
