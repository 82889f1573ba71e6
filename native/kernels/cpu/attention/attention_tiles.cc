// The passes over a tile before a core's loops, and the list of cores.
#include "kernels/cpu/attention/attention_tiles.h"

#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/vec_math.h"
#include "kernels/shared/activations.h"

namespace balora::attention {
namespace {

template <typename A>
BALORA_INLINE void finish_queries(int64_t queries, const A* highest, A* total, A* lse) {
#pragma omp simd
  for (int64_t i = 0; i < queries; ++i) {
    lse[i] = highest[i] + vlog(total[i]);
    total[i] = A(1) / total[i];
  }
}

// The scores of a tile as the softmax takes them without a scale and a soft-cap.
template <typename E>
BALORA_INLINE void cap_scores(const SoftmaxTile<E>& t) {
  using A = Acc<E>;
  const A scale = static_cast<A>(t.geometry.scale), cap = static_cast<A>(t.geometry.softcap);
  for (int64_t column = 0; column < t.block.queries; column += kLanes) {
    const BlockKeys keys = keys_of_block(t, column);
    for (int64_t j = keys.first; j < keys.last; ++j) {
      A* s = t.scores + j * t.padded_queries + column;
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const A scaled = s[l] * scale;
        s[l] = cap == A(0) ? scaled : soft_capped<VectorMath>(scaled, cap);
      }
    }
  }
}

// The same for the gradient, whose dp gets what it lacks: delta, the slope of the soft-cap, scale.
template <typename E>
BALORA_INLINE void cap_gradients(const GradTile<E>& t) {
  using A = Acc<E>;
  const A scale = static_cast<A>(t.geometry.scale), cap = static_cast<A>(t.geometry.softcap);
  const int64_t rows = kQueriesByKeys<E> ? t.block.queries : t.block.keys;
  const int64_t ld = kQueriesByKeys<E> ? t.padded_keys : t.padded_queries;
  for (int64_t row = 0; row < rows; ++row) {
    const Columns seen = seen_in_row(t, row);
    A *s = t.scores + row * ld, *dp = t.dp + row * ld;
    for (int64_t block = block_first(seen); block < block_last(seen); block += kLanes) {
#pragma omp simd
      for (int64_t i = block; i < block + kLanes; ++i) {
        const A score = soft_capped<VectorMath>(s[i] * scale, cap), ratio = score / cap;
        s[i] = score;
        dp[i] = (dp[i] - t.delta[kQueriesByKeys<E> ? row : i]) * ((A(1) - ratio * ratio) * scale);
      }
    }
  }
}

template <typename A>
BALORA_INLINE void scale_each(A* values, int64_t count, A factor) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) values[i] *= factor;
}

}  // namespace

template <typename A>
void scale_values(A* values, int64_t count, double factor) {
  at_level<&scale_each<A>>(values, count, static_cast<A>(factor));
}
template void scale_values(float*, int64_t, double);
template void scale_values(double*, int64_t, double);

template <typename A>
void finish_softmax(int64_t queries, const A* highest, A* total, A* lse) {
  at_level<&finish_queries<A>>(queries, highest, total, lse);
}
template void finish_softmax(int64_t, const float*, float*, float*);
template void finish_softmax(int64_t, const double*, double*, double*);

template <typename T, typename E>
void softmax(SoftmaxTile<E> tile) {
  Geometry& g = tile.geometry;
  if (g.softcap != 0 || !(static_cast<Acc<E>>(g.scale) > 0)) {
    at_level<&cap_scores<E>>(tile);
    g.scale = 1, g.softcap = 0;
  }
  core_of<T, E>().softmax(tile);
}

template <typename T, typename E>
void score_gradient(GradTile<E> tile) {
  alignas(64) static constexpr Acc<E> kNone[kTile] = {};
  Geometry& g = tile.geometry;
  if (g.softcap != 0) {
    at_level<&cap_gradients<E>>(tile);
    g.scale = 1, g.softcap = 0, tile.delta = kNone;
  }
  core_of<T, E>().gradient(tile);
}

namespace {

template <typename T, typename E>
using CoreOf = Core<const AttentionCore<T, E>*>;

constexpr CoreOf<bf16, bf16> kBf16[] = {
    BALORA_X86("amx", platform::kAmx, &x86::amx_core),
    BALORA_X86("avx512_bf16", platform::kBf16, &x86::avx512_bf16_core),
    {"none", 0, nullptr},
};

}  // namespace

template <typename T, typename E>
const CoreOf<T, E>& named_core_of() {
  if constexpr (std::is_same_v<E, bf16>) {
    static const CoreOf<T, E>& core = first_core(kBf16);
    return core;
  } else {
    static const CoreOf<T, E> any = {"any", 0, &any_core<T, E>()};
    return any;
  }
}

#define CORE(T, E)                                    \
  template const CoreOf<T, E>& named_core_of<T, E>(); \
  template void softmax<T, E>(SoftmaxTile<E>);        \
  template void score_gradient<T, E>(GradTile<E>);
CORE(float, float)
CORE(f16, float)
CORE(double, double)
CORE(bf16, float)
CORE(bf16, bf16)
#undef CORE

}  // namespace balora::attention

namespace balora {
BALORA_IMPLEMENTATIONS(attention_core_bf16, attention::kBf16)
}  // namespace balora
