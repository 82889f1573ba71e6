// Rows whose kernels are still to come: each fails with its name.
#include "common.cuh"

namespace balora::cuda {

#define PENDING(name, signature)                           \
  int32_t name##_kernel signature {                        \
    throw std::runtime_error(#name " has no cuda kernel"); \
  }
PENDING(relative_attention_forward,
        (balora_context*, const balora_relative*, const balora_view*, const balora_view*))
PENDING(relative_attention_backward,
        (balora_context*, const balora_view*, const balora_relative*, const balora_view*,
         const balora_view*, const balora_relative_gradients*))
#undef PENDING

}  // namespace balora::cuda
