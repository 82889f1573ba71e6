// Rows of a cached teacher, whose kernels are still to come: each fails with its name.
#include "common.cuh"

namespace balora::cuda {

#define PENDING(name, signature)                           \
  int32_t name##_kernel signature {                        \
    throw std::runtime_error(#name " has no cuda kernel"); \
  }
PENDING(teacher_summary,
        (balora_context*, const balora_view*, const balora_view*, const balora_view*,
         const balora_view*, const balora_view*, const balora_head_options*))
PENDING(head_losses_cached,
        (balora_context*, const balora_view*, const balora_view*, const balora_view*,
         const balora_view*, const balora_view*, const balora_view*, const balora_view*,
         const balora_view*, const balora_head_options*))
#undef PENDING

}  // namespace balora::cuda
