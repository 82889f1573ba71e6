#include "kernels/cpu/products/encoded.h"

#include <type_traits>

#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/shared/rows.h"

namespace balora {
namespace {

constexpr int64_t kChunk = 1024;  // values that are decoded at a time before they are converted

void decode(const View& view, int64_t first, int64_t count, float* out) {
  view.encoding->decode(view.encoding, view.data, first, count, out);
}

template <typename T>
BALORA_INLINE void round_values(float* values, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) values[i] = static_cast<float>(load(store<T>(values[i])));
}

}  // namespace

// A chunk at a time is decoded and then rounded or converted, while it is in the nearest cache.
template <typename T>
void decode_values(const View& view, int64_t first, int64_t count, T* out) {
  const bool exact = view.dtype == BALORA_F32 || view.dtype == BALORA_F64;
  if constexpr (std::is_same_v<T, float>) {
    if (exact) return decode(view, first, count, out);
    dispatch_float(view.dtype, [&]<typename Own>() {
      for (int64_t at = 0; at < count; at += kChunk) {
        const int64_t n = std::min(kChunk, count - at);
        decode(view, first + at, n, out + at);
        at_level<&round_values<Own>>(out + at, n);
      }
    });
    return;
  }
  float chunk[kChunk];
  for (int64_t at = 0; at < count; at += kChunk) {
    const int64_t n = std::min(kChunk, count - at);
    decode(view, first + at, n, chunk);
    if (exact) {
      convert_row(chunk, out + at, n);
      continue;
    }
    dispatch_float(view.dtype, [&]<typename Own>() {
      if constexpr (std::is_same_v<Own, T>) {
        convert_row(chunk, out + at, n);
      } else {
        Own own[kChunk];
        convert_row(chunk, own, n);
        convert_row(own, out + at, n);
      }
    });
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
