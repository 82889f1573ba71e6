// Writes a GGUF file (version 3; ggml/docs/gguf.md). The metadata are given as they stand in a
// file; the layout of the tensors is fixed up front. Their data may then be written in any order
// and in parts, so that a large model never has to be in memory at once.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "io/atomic_file.h"
#include "io/ggml_types.h"

namespace balora::io {

struct GgufSpec {
  std::string name;
  const GgmlTypeInfo* type;
  std::vector<int64_t> shape;  // row-major, of one to four dimensions
};

// The entries of the metadata one after another: key, type and value of each.
struct GgufEntries {
  std::span<const std::byte> bytes;
  uint64_t count;
  uint64_t alignment;  // general.alignment, or 32 without one
};

class GgufWriter {
 public:
  struct Slot {
    const GgmlTypeInfo* type;
    int64_t elements;
    uint64_t begin;  // bytes from the start of the file
    uint64_t bytes;
    uint64_t written = 0;
  };

  // Throws ArgumentError for a repeated name or a shape that the type's blocks do not fit,
  // NativeError where the disk cannot hold the file.
  GgufWriter(const std::string& path, const GgufEntries& metadata,
             const std::vector<GgufSpec>& tensors, const FileCalls& calls = kSystemFileCalls);

  const std::string& path() const { return file_->path(); }
  // Throws ArgumentError for a name that was not announced.
  const Slot& slot(const std::string& name) const { return slots_.at(checked(name)); }
  // Bytes of a tensor from its byte `offset` on, each once.
  void write(const std::string& name, uint64_t offset, std::span<const std::byte> data);
  void commit();  // throws ArgumentError while data are missing
  void abandon() noexcept { file_->abandon(); }

 private:
  const std::string& checked(const std::string& name) const;
  std::map<std::string, Slot> slots_;
  std::unique_ptr<AtomicFile> file_;
};

}  // namespace balora::io
