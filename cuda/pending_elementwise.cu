// Rows whose kernels are still to come: each fails with its name.
#include "common.cuh"

namespace balora::cuda {

#define PENDING(name, signature)                           \
  int32_t name##_kernel signature {                        \
    throw std::runtime_error(#name " has no cuda kernel"); \
  }
PENDING(accumulate, (balora_context*, const balora_view*, const balora_view*, double))
PENDING(check_finite, (balora_context*, const balora_view*, int32_t*))
PENDING(copy, (balora_context*, const balora_view*, const balora_view*))
PENDING(binary,
        (balora_context*, const balora_view*, const balora_view*, const balora_view*, int32_t))
PENDING(binary_backward, (balora_context*, const balora_view*, const balora_view*,
                          const balora_view*, const balora_view*, const balora_view*, int32_t))
PENDING(unary, (balora_context*, const balora_view*, const balora_view*, int32_t, double, double))
PENDING(unary_backward, (balora_context*, const balora_view*, const balora_view*,
                         const balora_view*, int32_t, double, double))
PENDING(compare,
        (balora_context*, const balora_view*, const balora_view*, const balora_view*, int32_t))
PENDING(where, (balora_context*, const balora_view*, const balora_view*, const balora_view*,
                const balora_view*))
PENDING(is_finite, (balora_context*, const balora_view*, const balora_view*))
PENDING(random_words, (balora_context*, const balora_view*, uint64_t, uint64_t))
PENDING(random_uniform, (balora_context*, const balora_view*, uint64_t, uint64_t, double, double))
PENDING(random_normal, (balora_context*, const balora_view*, uint64_t, uint64_t, double, double))
PENDING(dropout,
        (balora_context*, const balora_view*, const balora_view*, uint64_t, uint64_t, double))
PENDING(scale_by, (balora_context*, const balora_view*, const balora_view*, const balora_view*))
PENDING(adamw_step,
        (balora_context*, const balora_view*, const balora_view*, const balora_view*,
         const balora_view*, const balora_view*, double, double, double, double, double, int64_t))
PENDING(sgd_step, (balora_context*, const balora_view*, const balora_view*, const balora_view*,
                   const balora_view*, double, double, double, double, int32_t, int32_t))
PENDING(norm_accumulate, (balora_context*, const balora_view*, const balora_view*, int32_t))
PENDING(scale, (balora_context*, const balora_view*, const balora_view*))
PENDING(add_scaled, (balora_context*, const balora_view*, const balora_view*, double))
PENDING(adafactor_step,
        (balora_context*, const balora_view*, const balora_view*, const balora_view*,
         const balora_view*, const balora_view*, const balora_view*, double, double, double, double,
         double, double, double))
#undef PENDING

}  // namespace balora::cuda
