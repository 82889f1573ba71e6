// Memory of one call of a kernel, freed when it returns.
#pragma once
#include <cstdint>
#include <new>

#include "kernels/kernel_table.h"

namespace balora {

// `count` elements. @throws std::bad_alloc
template <typename T>
T* workspace(Context* ctx, int64_t count) {
  void* memory = ctx->workspace(ctx, static_cast<uint64_t>(count) * sizeof(T));
  if (!memory) throw std::bad_alloc();
  return static_cast<T*>(memory);
}

}  // namespace balora
