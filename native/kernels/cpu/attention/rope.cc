// Rotary position embedding in the rotate-half convention of the HF checkpoints: channels i and i +
// Drot/2 of each head are rotated by the angle of (position, i); channels from Drot on are copied
// (partial rotary). The backward is the same rotation with the angle negated. Heads may be
// row-strided, as slices of a fused q, k, v product are.
#include <cstring>

#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/shared/messages.h"
#include "kernels/shared/rope.h"

namespace balora {
namespace {

template <typename T>
struct Rotation {
  const T* x;
  int64_t x_stride;
  T* y;
  int64_t y_stride;
  const Acc<T>* cosine;  // (P, Drot/2)
  const Acc<T>* sine;
  const int32_t* positions;
  int64_t heads, size, half;  // half = Drot/2
  Acc<T> sign;                // -1 rotates back
};

template <typename T>
BALORA_INLINE void rotate_rows(const Rotation<T>& r, int64_t begin, int64_t end) {
  using A = Acc<T>;
  for (int64_t n = begin; n < end; ++n) {
    const A* c = r.cosine + r.positions[n] * r.half;
    const A* s = r.sine + r.positions[n] * r.half;
    for (int64_t h = 0; h < r.heads; ++h) {
      const T* x = r.x + n * r.x_stride + h * r.size;
      T* y = r.y + n * r.y_stride + h * r.size;
#pragma omp simd
      for (int64_t i = 0; i < r.half; ++i) {
        const auto pair = rotated<A>(load(x[i]), load(x[i + r.half]), c[i], r.sign * s[i]);
        y[i] = store<T>(pair.first);
        y[i + r.half] = store<T>(pair.second);
      }
      for (int64_t i = 2 * r.half; i < r.size; ++i) y[i] = x[i];
    }
  }
}

constexpr int64_t kRowGrain = 8;

}  // namespace

int32_t rope_kernel(Context* ctx, const balora_rope& o) {
  const int64_t rows = o.x->shape[0];
  const int32_t* position = data_of<int32_t>(o.positions);
  for (int64_t n = 0; n < rows; ++n) {
    if (position[n] < 0 || position[n] >= o.cosine->shape[0]) {
      throw ArgumentError(messages::outside_tables(position[n], n, o.cosine->shape[0]));
    }
  }
  dispatch_float(o.x->dtype, [&]<typename T>() {
    const Rotation<T> rotation{.x = data_of<T>(o.x),
                               .x_stride = o.x->stride[0],
                               .y = data_of<T>(o.y),
                               .y_stride = o.y->stride[0],
                               .cosine = data_of<Acc<T>>(o.cosine),
                               .sine = data_of<Acc<T>>(o.sine),
                               .positions = position,
                               .heads = o.x->shape[1],
                               .size = o.x->shape[2],
                               .half = o.cosine->shape[1],
                               .sign = Acc<T>(o.inverse ? -1 : 1)};
    share_out(ctx, rows, kRowGrain,
              [&](int64_t begin, int64_t end) { at_level<&rotate_rows<T>>(rotation, begin, end); });
  });
  return 0;
}

}  // namespace balora
