// Rows whose kernels are still to come: each fails with its name.
#include "common.cuh"

namespace balora::cuda {

#define PENDING(name, signature)                           \
  int32_t name##_kernel signature {                        \
    throw std::runtime_error(#name " has no cuda kernel"); \
  }
PENDING(topk, (balora_context*, const balora_view*, const balora_view*, const balora_view*))
#undef PENDING

}  // namespace balora::cuda
