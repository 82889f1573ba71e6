// Rows whose kernels are still to come: each fails with its name.
#include "common.cuh"

namespace balora::cuda {

#define PENDING(name, signature)                           \
  int32_t name##_kernel signature {                        \
    throw std::runtime_error(#name " has no cuda kernel"); \
  }
PENDING(topk, (balora_context*, const balora_view*, const balora_view*, const balora_view*))
PENDING(gated_forward,
        (balora_context*, const balora_view*, const balora_view*, const balora_view*, int32_t))
PENDING(gated_backward, (balora_context*, const balora_view*, const balora_view*,
                         const balora_view*, const balora_view*, const balora_view*, int32_t))
PENDING(rope, (balora_context*, const balora_view*, const balora_view*, const balora_view*,
               const balora_view*, const balora_view*, int32_t))
PENDING(column_scale_forward, (balora_context*, const balora_view*, const balora_view*,
                               const balora_view*, const balora_view*))
PENDING(column_scale_backward,
        (balora_context*, const balora_view*, const balora_view*, const balora_view*,
         const balora_view*, const balora_view*, const balora_view*))
PENDING(row_norm,
        (balora_context*, const balora_view*, const balora_low_rank*, int32_t, const balora_view*))
#undef PENDING

}  // namespace balora::cuda
