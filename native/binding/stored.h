// A tensor of a weight file on its way to a device: decoded on the engine's thread, and checked for
// NaN and infinities where that is asked for.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "engine/launch.h"
#include "io/mapped_file.h"
#include "tensor/tensor.h"

namespace balora::binding {

// Data as units (elements, blocks or rows) that are decoded independently.
struct Stored {
  std::shared_ptr<const io::MappedFile> file;
  std::string name;
  std::span<const std::byte> bytes;  // of the file, that decode() reads
  int64_t units;
  int64_t unit_elements;
  int64_t grain;  // units a thread decodes at least
  std::function<void(int64_t begin, int64_t end, void* out)> decode =
      {};  // out: where `begin` goes
};

// A new tensor of the decoded values.
Tensor read_stored(Engine& engine, const Shape& shape, DType dtype, Stored stored,
                   bool check_finite);

// A tensor that is the file's own bytes, on an engine that shares the host's memory.
Tensor alias_stored(Engine& engine, const Shape& shape, DType dtype, Stored stored,
                    bool check_finite);

// A weight that stays in its blocks: the file's own pages where the engine can read them, else, or
// where `rows` is given, a copy. With `rows`, row i of the tensor is row rows(i) of the file.
struct StoredBlocks {
  std::shared_ptr<const io::MappedFile> file;
  std::string name;
  std::span<const std::byte> bytes;
  std::shared_ptr<const balora_encoding> encoding;
  std::function<int64_t(int64_t row)> rows = {};
};
Tensor blocks_stored(Engine& engine, const Shape& shape, DType dtype, StoredBlocks stored,
                     bool check_finite);

// The index of the first of `count` values in blocks at `data`, on the host, that is NaN or
// infinite, or -1.
int64_t find_non_finite_value(const Context* ctx, const balora_encoding& encoding, const void* data,
                              int64_t count);

}  // namespace balora::binding
