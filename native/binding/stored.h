// A tensor of a weight file on its way to a device: decoded on the engine's thread, and checked for
// NaN and infinities where that is asked for.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "tensor/tensor.h"

namespace balora::binding {

// Data as units (elements, blocks or rows) that are decoded independently.
struct Stored {
  std::string path, name;
  uint64_t offset;  // in the file, for errors
  int64_t units;
  int64_t unit_elements;
  int64_t grain;  // units a thread decodes at least
  std::function<void(int64_t begin, int64_t end, void* out)> decode;  // out: where `begin` goes
};

// A new tensor of the decoded values. `file` keeps alive what decode() reads.
Tensor read_stored(Engine& engine, const Shape& shape, DType dtype, std::shared_ptr<void> file,
                   Stored stored, bool check_finite);

// Throws FormatError for the first NaN or infinity among `count` elements that begin with the
// tensor's element `first`.
void refuse_non_finite(const Stored& stored, DType dtype, const void* data, int64_t count,
                       int64_t first);

}  // namespace balora::binding
