// Rows whose kernels are still to come: each fails with its name.
#include "common.cuh"

namespace balora::cuda {

#define PENDING(name, signature)                           \
  int32_t name##_kernel signature {                        \
    throw std::runtime_error(#name " has no cuda kernel"); \
  }
PENDING(randomized_svd, (balora_context*, const balora_view*, const balora_view*,
                         const balora_view*, const balora_view*, int64_t, int64_t, uint64_t))
PENDING(qr_backward, (balora_context*, const balora_view*, const balora_view*, const balora_view*,
                      const balora_view*, const balora_view*))
PENDING(eigh_backward, (balora_context*, const balora_view*, const balora_view*, const balora_view*,
                        const balora_view*, const balora_view*))
PENDING(svd_backward,
        (balora_context*, const balora_view*, const balora_view*, const balora_view*,
         const balora_view*, const balora_view*, const balora_view*, const balora_view*))
#undef PENDING

}  // namespace balora::cuda
