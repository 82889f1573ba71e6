// Memory of one call of a kernel, freed when it returns.
#pragma once
#include <cstdint>
#include <new>

#include "kernels/kernel_table.h"
#include "tensor/shape.h"

namespace balora {

// `count` elements, at most as many as a tensor may have. @throws std::bad_alloc
template <typename T>
T* workspace(Context* ctx, int64_t count) {
  if (count < 0 || count > kMaxElements) throw std::bad_alloc();
  void* memory = ctx->workspace(ctx, static_cast<uint64_t>(count) * sizeof(T));
  if (!memory) throw std::bad_alloc();
  return static_cast<T*>(memory);
}

}  // namespace balora
