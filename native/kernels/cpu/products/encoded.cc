#include "kernels/cpu/products/encoded.h"

#include <type_traits>

#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/shared/rows.h"

namespace balora {
namespace {

constexpr int64_t kChunk = 1024;  // values that are decoded at a time before they are converted

template <typename T>
BALORA_INLINE void round_values(float* values, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) values[i] = static_cast<float>(load(store<T>(values[i])));
}

}  // namespace

// A chunk at a time is decoded and then rounded or converted, while it is in the nearest cache.
template <typename T>
void decode_values(const View& view, int64_t first, int64_t count, T* out) {
  float chunk[kChunk];
  for (int64_t at = 0; at < count; at += kChunk) {
    const int64_t n = std::min(kChunk, count - at);
    float* values = chunk;
    if constexpr (std::is_same_v<T, float>) values = out + at;
    view.encoding->decode(view.encoding, view.data, first + at, n, values);
    dispatch_float(view.dtype, [&]<typename Own>() {
      constexpr bool kRounds = sizeof(Own) == 2 && !std::is_same_v<Own, T>;
      if constexpr (kRounds) at_level<&round_values<Own>>(values, n);
    });
    if constexpr (!std::is_same_v<T, float>) convert_row(values, out + at, n);
  }
}
template void decode_values(const View&, int64_t, int64_t, float*);
template void decode_values(const View&, int64_t, int64_t, bf16*);
template void decode_values(const View&, int64_t, int64_t, f16*);
template void decode_values(const View&, int64_t, int64_t, double*);

void decode_rows(Context* ctx, const View& view, int64_t begin, int64_t end, int32_t type,
                 void* out) {
  const int64_t columns = view.shape[1];
  dispatch_float(type, [&]<typename T>() {
    parallel_for(ctx, end - begin, std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(columns, 1)),
                 [&](int64_t from, int64_t to) {
                   decode_values(view, (begin + from) * columns, (to - from) * columns,
                                 static_cast<T*>(out) + from * columns);
                 });
  });
}

}  // namespace balora
