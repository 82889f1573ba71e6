// Rows whose kernels are still to come: each fails with its name.
#include "common.cuh"

namespace balora::cuda {

#define PENDING(name, signature)                           \
  int32_t name##_kernel signature {                        \
    throw std::runtime_error(#name " has no cuda kernel"); \
  }
PENDING(linear_forward, (balora_context*, const balora_view*, const balora_view*,
                         const balora_linear*, int32_t, const balora_low_rank*, int32_t))
PENDING(linear_backward,
        (balora_context*, const balora_view*, const balora_view*, const balora_view*,
         const balora_view*, const balora_linear*, int32_t, const balora_low_rank*, int32_t))
PENDING(linear_weight_backward, (balora_context*, const balora_view*, const balora_view*,
                                 const balora_view*, const balora_view*))
PENDING(head_losses,
        (balora_context*, const balora_view*, const balora_view*, const balora_view*,
         const balora_view*, const balora_view*, const balora_view*, const balora_view*,
         const balora_view*, const balora_view*, const balora_view*, const balora_head_options*))
#undef PENDING

}  // namespace balora::cuda
