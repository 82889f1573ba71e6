// Writes a safetensors file as the reference implementation lays it out: tensors by dtype (widest
// alignment first), then name, so equal contents give equal bytes. The layout is fixed up front;
// tensors may then be written in any order, one at a time, so that a large model never has to be in
// memory at once.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "io/atomic_file.h"
#include "tensor/dtype.h"

namespace balora::io {

struct SafetensorsSpec {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
};

class SafetensorsWriter {
 public:
  // Throws ArgumentError for a repeated or reserved name, NativeError where the disk cannot hold
  // the file.
  SafetensorsWriter(const std::string& path, const std::vector<SafetensorsSpec>& tensors,
                    const std::map<std::string, std::string>& metadata,
                    const FileCalls& calls = kSystemFileCalls);

  // Each tensor once, all its bytes.
  void write(const std::string& name, std::span<const std::byte> data);
  void commit();  // throws ArgumentError while tensors are missing
  void abandon() noexcept { file_->abandon(); }

 private:
  struct Slot {
    uint64_t begin;
    uint64_t bytes;
    bool written;
  };
  std::map<std::string, Slot> slots_;
  std::unique_ptr<AtomicFile> file_;
};

}  // namespace balora::io
