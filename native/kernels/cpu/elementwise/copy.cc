// copy: the one kernel behind contiguous(), cast() and copy_(): any strides, any pair of dtypes,
// one read and one write. A float becomes an integer by truncation towards zero, saturating at the
// ends (NaN gives 0); f64 and integers become bf16 or f16 through f32. Transposed sources go
// through tiles, so that each cache line is read once.
#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/products/encoded.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/strided.h"

namespace balora {
namespace {

template <typename T>
constexpr bool kIsFloat = !std::is_integral_v<T>;

template <typename D, typename S>
BALORA_INLINE D convert(S value) {
  if constexpr (std::is_same_v<D, S>) {
    return value;
  } else if constexpr (kIsFloat<D> && kIsFloat<S>) {
    return store<D>(static_cast<Acc<D>>(load(value)));
  } else if constexpr (kIsFloat<D>) {
    return store<D>(static_cast<Acc<D>>(value));
  } else if constexpr (kIsFloat<S>) {
    const double wide = static_cast<double>(load(value));
    constexpr double kLow = static_cast<double>(std::numeric_limits<D>::min());
    constexpr double kHigh = static_cast<double>(std::numeric_limits<D>::max());
    if (!(wide == wide)) return D(0);
    if (wide <= kLow) return std::numeric_limits<D>::min();
    if (wide >= kHigh) return std::numeric_limits<D>::max();
    return static_cast<D>(wide);
  } else {
    return static_cast<D>(value);
  }
}

template <typename D>
BALORA_INLINE void fill_row(D* d, D value, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) d[i] = value;
}

// Contiguous floats have convert.h's loop, compiled for each level of the processor. The others are
// compiled once: index lists, masks, and strided elements, which wait for memory.
template <typename S, typename D>
void copy_row(const S* s, int64_t s_step, D* d, int64_t d_step, int64_t n) {
  if (s_step == 1 && d_step == 1) {
    if constexpr (std::is_same_v<S, D>) {
      std::memcpy(d, s, static_cast<size_t>(n) * sizeof(D));
    } else if constexpr (kIsFloat<S> && kIsFloat<D>) {
      convert_row(s, d, n);
    } else {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) d[i] = convert<D>(s[i]);
    }
  } else if (s_step == 0 && d_step == 1) {
    at_level<&fill_row<D>>(d, convert<D>(*s), n);
  } else {
    for (int64_t i = 0; i < n; ++i) d[i * d_step] = convert<D>(s[i * s_step]);
  }
}

// The dimension (not the last) along which the source is contiguous while the destination is so
// along the last; -1: none.
int transposed_dim(const LoopPlan<2>& plan) {
  if (plan.row_stride()[0] == 1 || plan.row_stride()[0] == 0 || plan.row_stride()[1] != 1)
    return -1;
  for (int d = 0; d + 1 < plan.ndim; ++d) {
    const auto at = static_cast<size_t>(d);
    if (plan.stride[at][0] == 1 && plan.shape[at] >= 8 && plan.row_length() >= 8) return d;
  }
  return -1;
}

template <typename S, typename D>
void copy_transposed(const Context* ctx, LoopPlan<2> plan, int dim, const S* source,
                     D* destination) {
  constexpr int64_t kTile = 32;
  const auto at = static_cast<size_t>(dim), last = static_cast<size_t>(plan.ndim - 1);
  const int64_t rows = plan.shape[at], columns = plan.shape[last];
  const int64_t source_step = plan.stride[last][0], destination_step = plan.stride[at][1];
  const int64_t row_tiles = (rows + kTile - 1) / kTile,
                column_tiles = (columns + kTile - 1) / kTile;
  int64_t outer = 1;
  for (size_t d = 0; d < last; ++d) outer *= d == at ? 1 : plan.shape[d];
  parallel_for(ctx, outer * row_tiles * column_tiles, 16, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      int64_t rest = tile / (row_tiles * column_tiles);
      const S* s = source;
      D* d = destination;
      for (int i = plan.ndim - 2; i >= 0; --i) {
        const auto k = static_cast<size_t>(i);
        if (k == at) continue;
        s += rest % plan.shape[k] * plan.stride[k][0];
        d += rest % plan.shape[k] * plan.stride[k][1];
        rest /= plan.shape[k];
      }
      const int64_t first_row = tile / column_tiles % row_tiles * kTile;
      const int64_t first_column = tile % column_tiles * kTile;
      const int64_t last_row = std::min(rows, first_row + kTile);
      const int64_t last_column = std::min(columns, first_column + kTile);
      for (int64_t r = first_row; r < last_row; ++r) {
#pragma omp simd
        for (int64_t c = first_column; c < last_column; ++c) {
          d[r * destination_step + c] = convert<D>(s[r + c * source_step]);
        }
      }
    }
  });
}

// The values of a weight in blocks, into a contiguous destination of a float type.
void copy_decoded(const Context* ctx, const View& source, const View& destination) {
  constexpr int64_t kUnit = 4096;
  const int64_t count = view_numel(source);
  dispatch_float(destination.dtype, [&]<typename T>() {
    parallel_for(ctx, (count + kUnit - 1) / kUnit, 8, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * kUnit;
      decode_values(source, first, std::min(end * kUnit, count) - first,
                    data_of<T>(&destination) + first);
    });
  });
}

}  // namespace

int32_t copy_kernel(Context* ctx, const balora_copy& o) {
  if (o.source->encoding) {
    copy_decoded(ctx, *o.source, *o.destination);
    return 0;
  }
  const LoopPlan<2> plan = plan_loops<2>({o.source, o.destination});
  const int transposed = transposed_dim(plan);
  dispatch_any(o.source->dtype, [&]<typename S>() {
    dispatch_any(o.destination->dtype, [&]<typename D>() {
      const S* s = data_of<S>(o.source);
      D* d = data_of<D>(o.destination);
      if (transposed >= 0) return copy_transposed<S, D>(ctx, plan, transposed, s, d);
      for_each_row<2>(ctx, plan, [&](const std::array<int64_t, 2>& at, int64_t n) {
        copy_row(s + at[0], plan.row_stride()[0], d + at[1], plan.row_stride()[1], n);
      });
    });
  });
  return 0;
}

}  // namespace balora
