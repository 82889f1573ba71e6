// Random tensors and dropout from Philox counters (philox.h): element i reads word i % 4 of block i
// / 4 (f64: the two halves of block i / 2), whatever the threads or the device. Uniforms in [0, 1)
// are exact: the bits that fit the type times a power of two. The dropout mask is never stored:
// backward draws it again.
#include <algorithm>

#include "kernels/cpu/random/philox_words.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/shared/philox.h"

namespace balora {
namespace {

constexpr int64_t kTile = 4 * kWordBlocks;  // words
constexpr int64_t kTilesPerThread = 16;

// Calls body(begin, words, n) for tiles of the n words that a tensor takes.
template <typename Body>
void for_each_tile(const Context* ctx, int64_t n, uint64_t seed, uint64_t stream,
                   const Body& body) {
  parallel_for(ctx, (n + kTile - 1) / kTile, kTilesPerThread, [&](int64_t first, int64_t last) {
    alignas(64) uint32_t words[kTile];
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t begin = tile * kTile, count = std::min(kTile, n - begin);
      draw_words(seed, stream, static_cast<uint64_t>(begin / 4), static_cast<int>((count + 3) / 4),
                 words);
      body(begin, static_cast<const uint32_t*>(words), count);
    }
  });
}

// Words that an element takes.
template <typename T>
constexpr int64_t kWordsOf = std::is_same_v<T, double> ? 2 : 1;

// Uniform in [0, 1) of element i, with as many bits as the type holds there.
template <typename T>
BALORA_INLINE double uniform_at(const uint32_t* words, int64_t i) {
  if constexpr (std::is_same_v<T, double>) return philox_double(words[2 * i], words[2 * i + 1]);
  return philox_uniform(words[i], std::is_same_v<T, bf16>  ? kUniformBitsBf16
                                  : std::is_same_v<T, f16> ? kUniformBitsF16
                                                           : kUniformBitsF32);
}

// Uniforms in [low, high), in two loops, which compilers keep apart: in one they would fuse the
// product and the sum, where every processor and device is to give the same number.
template <typename T>
BALORA_INLINE void uniforms(const uint32_t* words, T* y, int64_t n, double low, double high) {
  double shares[kTile];
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) shares[i] = (high - low) * uniform_at<T>(words, i);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const double value = low + shares[i];
    y[i] = store<T>(static_cast<Acc<T>>(value < high ? value : low));
  }
}

// The mask of dropout as a factor: 0, or 1 / (1 - p).
template <typename T>
BALORA_INLINE void drop(const T* x, const uint32_t* words, T* y, int64_t n, uint32_t threshold,
                        Acc<T> scale) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const Acc<T> value = load(x[i]) * scale;
    y[i] = store<T>(dropout_keeps(words[i], threshold) ? value : Acc<T>(0));
  }
}

}  // namespace

int32_t random_words_kernel(Context* ctx, const balora_random_words& o) {
  for_each_tile(ctx, view_numel(*o.y), o.seed, o.stream,
                [&](int64_t begin, const uint32_t* words, int64_t n) {
                  std::copy(words, words + n, data_of<int64_t>(o.y) + begin);
                });
  return 0;
}

int32_t random_uniform_kernel(Context* ctx, const balora_random_uniform& o) {
  dispatch_float(o.y->dtype, [&]<typename T>() {
    constexpr int64_t kWords = kWordsOf<T>;
    for_each_tile(ctx, kWords * view_numel(*o.y), o.seed, o.stream,
                  [&](int64_t begin, const uint32_t* words, int64_t count) {
                    T* y = data_of<T>(o.y) + begin / kWords;
                    at_level<&uniforms<T>>(words, y, count / kWords, o.low, o.high);
                  });
  });
  return 0;
}

int32_t random_normal_kernel(Context* ctx, const balora_random_normal& o) {
  const int64_t n = view_numel(*o.y);
  dispatch_float(o.y->dtype, [&]<typename T>() {
    T* out = data_of<T>(o.y);
    parallel_for(ctx, (n + 1) / 2, 1 << 10, [&](int64_t begin, int64_t end) {
      for (int64_t pair = begin; pair < end; ++pair) {
        const NormalPair z = philox_normals(o.seed, static_cast<uint64_t>(pair), o.stream);
        out[2 * pair] = store<T>(static_cast<Acc<T>>(o.mean + o.deviation * z.first));
        if (2 * pair + 1 < n) {
          out[2 * pair + 1] = store<T>(static_cast<Acc<T>>(o.mean + o.deviation * z.second));
        }
      }
    });
  });
  return 0;
}

int32_t dropout_kernel(Context* ctx, const balora_dropout& o) {
  const uint32_t threshold = dropout_threshold(o.p);
  dispatch_float(o.x->dtype, [&]<typename T>() {
    const auto scale = static_cast<Acc<T>>(dropout_scale(o.p));
    for_each_tile(ctx, view_numel(*o.x), o.seed, o.stream,
                  [&](int64_t begin, const uint32_t* words, int64_t n) {
                    at_level<&drop<T>>(data_of<T>(o.x) + begin, words, data_of<T>(o.y) + begin, n,
                                       threshold, scale);
                  });
  });
  return 0;
}

}  // namespace balora
