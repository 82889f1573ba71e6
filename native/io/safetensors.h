// The safetensors container (https://github.com/huggingface/safetensors, format 0.4): u64
// little-endian header length, JSON header, then the tensors' bytes, contiguous, in order, without
// holes, ending exactly at the end of the file. Reading is strict: what the reference reader
// refuses is refused here, with the path, the byte offset and the field.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "io/mapped_file.h"
#include "tensor/dtype.h"

namespace balora::io {

constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;  // bytes; the reference reader's cap

struct SafetensorsEntry {
  std::string name;
  std::string dtype_name;      // as in the file: "F32", "BF16", "F8_E4M3", ...
  std::optional<DType> dtype;  // absent: a dtype of the format that balora has no tensors of
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // bytes from the start of the file
  uint64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;        // in file order
  std::map<std::string, std::string> metadata;  // __metadata__
};

// Throws FormatError for every violation. `path` is only named in errors.
SafetensorsHeader parse_safetensors(const std::string& path, std::span<const std::byte> bytes);

class SafetensorsFile {
 public:
  static std::shared_ptr<const SafetensorsFile> open(const std::string& path);

  const std::string& path() const { return file_->path(); }
  const SafetensorsHeader& header() const { return header_; }
  const SafetensorsEntry* find(const std::string& name) const;  // null: not in this file
  std::span<const std::byte> bytes(const SafetensorsEntry& entry) const {
    return file_->bytes().subspan(entry.begin, entry.end - entry.begin);
  }
  const std::shared_ptr<const MappedFile>& file() const { return file_; }

 private:
  std::shared_ptr<const MappedFile> file_;
  SafetensorsHeader header_;
  std::map<std::string, size_t> index_;
};

// model.safetensors.index.json: the shard (a file name in the same folder) of every tensor. Throws
// FormatError; a shard name with a directory in it is refused.
std::map<std::string, std::string> parse_safetensors_index(const std::string& path,
                                                           std::string_view text);

// Bits of one element, and balora's dtype for it where it has one. False: the
// format has no such dtype.
struct SafetensorsDType {
  const char* name;
  int bits;
  std::optional<DType> dtype;
};
const SafetensorsDType* find_safetensors_dtype(std::string_view name);
const char* safetensors_dtype_name(DType dtype);

}  // namespace balora::io
