#include "kernels/cpu/transpose16.h"

#include "kernels/cpu/simd.h"

namespace balora {
namespace {

typedef uint32_t Words __attribute__((vector_size(64), may_alias, aligned(4)));

// Rows i and i + kStep trade their off-diagonal runs of kStep words.
template <int kStep>
BALORA_INLINE void trade(Words* rows) {
  Words keep, take;
  for (int lane = 0; lane < 16; ++lane) {
    const auto at = static_cast<uint32_t>(lane);
    keep[lane] = lane & kStep ? 16 + at - kStep : at;
    take[lane] = lane & kStep ? 16 + at : at + kStep;
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    if (i & kStep) continue;
    const Words a = rows[i], b = rows[i + kStep];
    rows[i] = __builtin_shuffle(a, b, keep);
    rows[i + kStep] = __builtin_shuffle(a, b, take);
  }
}

}  // namespace

BALORA_SIMD void transpose16(const uint32_t* from, int64_t from_stride, uint32_t* to,
                             int64_t to_stride) {
  Words rows[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) rows[i] = *reinterpret_cast<const Words*>(from + i * from_stride);
  trade<8>(rows);
  trade<4>(rows);
  trade<2>(rows);
  trade<1>(rows);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) *reinterpret_cast<Words*>(to + i * to_stride) = rows[i];
}

}  // namespace balora
