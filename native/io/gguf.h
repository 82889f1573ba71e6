// The GGUF container, versions 2 and 3, little-endian (ggml/docs/gguf.md): metadata of every type,
// tensor infos, data aligned to general.alignment. Texts and arrays of the metadata are checked and
// stay in the file until somebody asks for them, since they may be as large as the file. Shapes are
// given row-major (the file's ne reversed). Every violation is a FormatError with path, byte offset
// and field; what is well formed but not for us (big-endian, version 1) is an UnsupportedError.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "io/ggml_types.h"
#include "io/mapped_file.h"

namespace balora::io {

enum class GgufType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
};
constexpr uint32_t kGgufTypeCount = 13;
const char* gguf_type_name(GgufType type);  // "UINT32", as the format's document names them

// A range of the file, from byte `begin` on: a text or an entry.
struct GgufText {
  uint64_t begin;
  uint64_t bytes;
};
// The elements of an array in the file, from byte `begin` on; strings and arrays among them have
// their lengths before them.
struct GgufArray {
  GgufType element;
  uint64_t count;
  uint64_t begin;
};
struct GgufValue {
  GgufType type;
  std::variant<uint64_t, int64_t, double, bool, GgufText, GgufArray> value;
};
// Bytes of a number or a BOOL; 0 for strings and arrays.
size_t gguf_scalar_bytes(GgufType type);

// Far more than any model has: a vocabulary's tokens and merges, tensors, metadata entries.
constexpr uint64_t kMaxGgufItems = uint64_t{1} << 22;
constexpr uint64_t kMaxGgufTensors = uint64_t{1} << 20;
constexpr uint64_t kMaxGgufEntries = uint64_t{1} << 16;

struct GgufTensor {
  std::string name;
  const GgmlTypeInfo* type;
  std::vector<int64_t> shape;  // row-major; the last extent is ne[0]
  uint64_t begin = 0;          // bytes from the start of the file
  uint64_t bytes = 0;
};

struct GgufHeader {
  uint32_t version = 0;
  uint64_t alignment = 32;
  uint64_t data_begin = 0;
  std::vector<std::pair<std::string, GgufValue>> metadata;  // in file order, keys unique
  std::vector<GgufText> entries;    // the bytes of each entry of the metadata, its key included
  std::vector<GgufTensor> tensors;  // in file order, names unique
};

GgufHeader parse_gguf(const std::string& path, std::span<const std::byte> bytes);

class GgufFile {
 public:
  static std::shared_ptr<const GgufFile> open(const std::string& path);

  const std::string& path() const { return file_->path(); }
  const GgufHeader& header() const { return header_; }
  const GgufTensor* find(const std::string& name) const;  // null: not in this file
  std::span<const std::byte> bytes(const GgufTensor& tensor) const {
    return file_->bytes().subspan(tensor.begin, tensor.bytes);
  }
  const std::shared_ptr<const MappedFile>& file() const { return file_; }

  std::string_view text(const GgufText& text) const;
  // The numbers of an array, in the file's own representation.
  std::span<const std::byte> numbers(const GgufArray& array) const;
  // The elements of an array of strings or arrays. Throws FormatError if the file has been changed
  // since it was opened so that they do not fit it any more.
  std::vector<GgufValue> items(const std::string& key, const GgufArray& array) const;

 private:
  std::shared_ptr<const MappedFile> file_;
  GgufHeader header_;
  std::map<std::string, size_t> index_;
};

}  // namespace balora::io
