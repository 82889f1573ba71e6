// Random tensors and dropout from Philox counters (philox.h): element i reads word i % 4 of block
// i / 4 (f64 and normals: the halves of block i / 2), as on the CPU, so words, uniforms and masks
// are the CPU's bits. A thread draws two blocks for its group of eight elements: 40 wide multiplies
// against the 32 bytes of bf16 that dropout moves, below what the memory's time allows. The dropout
// mask is never stored: backward draws it again.
#include "elementwise/elementwise.cuh"
#include "kernels/shared/philox.h"

namespace balora::cuda {
namespace {

struct Source {
  uint64_t seed, stream;
};

// offset + factor * value in two roundings, as on the CPU: a fused multiply-add would give
// other bits.
__device__ double affine(double offset, double factor, double value) {
  return __dadd_rn(offset, __dmul_rn(factor, value));
}

// Words [at, at + 8) of the stream; at is a multiple of 4.
__device__ void draw_group(const Source& source, int64_t at, uint32_t (&words)[kGroup]) {
  BALORA_UNROLL
  for (int b = 0; b < kGroup / 4; ++b) {
    const PhiloxBlock block = philox(source.seed, static_cast<uint64_t>(at / 4 + b), source.stream);
    BALORA_UNROLL
    for (int j = 0; j < 4; ++j) words[4 * b + j] = block[j];
  }
}

__global__ void draw_words(int64_t* y, int64_t n, Source source) {
  for (int64_t at = thread_index() * kGroup; at < n; at += thread_count() * kGroup) {
    uint32_t words[kGroup];
    draw_group(source, at, words);
    BALORA_UNROLL
    for (int j = 0; j < kGroup; ++j) {
      if (at + j < n) y[at + j] = words[j];
    }
  }
}

// low + (high - low) * u, u in [0, 1) with as many bits as the type holds there. What the last
// rounding brings to `high` becomes low.
__device__ double scaled(double u, double low, double high) {
  const double value = affine(low, high - low, u);
  return value < high ? value : low;
}

__global__ void draw_uniform(Operand y, int64_t n, Source source, double low, double high) {
  const int bits = y.dtype == BALORA_BF16  ? kUniformBitsBf16
                   : y.dtype == BALORA_F16 ? kUniformBitsF16
                                           : kUniformBitsF32;
  for (int64_t at = thread_index() * kGroup; at < n; at += thread_count() * kGroup) {
    uint32_t words[kGroup];
    float v[kGroup];
    draw_group(source, at, words);
    BALORA_UNROLL
    for (int j = 0; j < kGroup; ++j) {
      v[j] = static_cast<float>(scaled(philox_uniform(words[j], bits), low, high));
    }
    write_group(y, at, group_count(n, at), v);
  }
}

__global__ void draw_uniform_f64(double* y, int64_t n, Source source, double low, double high) {
  for (int64_t pair = thread_index(); 2 * pair < n; pair += thread_count()) {
    const PhiloxBlock block = philox(source.seed, static_cast<uint64_t>(pair), source.stream);
    y[2 * pair] = scaled(philox_double(block[0], block[1]), low, high);
    if (2 * pair + 1 < n) {
      y[2 * pair + 1] = scaled(philox_double(block[2], block[3]), low, high);
    }
  }
}

template <typename A>
__global__ void draw_normal(Operand y, int64_t n, Source source, double mean, double deviation) {
  for (int64_t pair = thread_index(); 2 * pair < n; pair += thread_count()) {
    const NormalPair z = philox_normals(source.seed, static_cast<uint64_t>(pair), source.stream);
    write(y, 2 * pair, static_cast<A>(affine(mean, deviation, z.first)));
    if (2 * pair + 1 < n) write(y, 2 * pair + 1, static_cast<A>(affine(mean, deviation, z.second)));
  }
}

template <typename A>
__global__ void drop_groups(Operand x, Operand y, int64_t n, Source source, uint32_t threshold,
                            A scale) {
  for (int64_t at = thread_index() * kGroup; at < n; at += thread_count() * kGroup) {
    const int count = group_count(n, at);
    uint32_t words[kGroup];
    A v[kGroup];
    read_group(x, at, count, v);
    draw_group(source, at, words);
    BALORA_UNROLL
    for (int j = 0; j < kGroup; ++j)
      v[j] = dropout_keeps(words[j], threshold) ? v[j] * scale : A(0);
    write_group(y, at, count, v);
  }
}

}  // namespace

int32_t random_words_kernel(Context* ctx, const balora_random_words& o) {
  const int64_t n = view_numel(*o.y);
  if (n == 0) return 0;
  launch(ctx, "random_words", groups(n), draw_words, data_of<int64_t>(o.y), n,
         Source{o.seed, o.stream});
  return 0;
}

int32_t random_uniform_kernel(Context* ctx, const balora_random_uniform& o) {
  const int64_t n = view_numel(*o.y);
  if (n == 0) return 0;
  const Source source{o.seed, o.stream};
  dispatch_accumulator(o.y->dtype, [&]<typename A>() {
    if constexpr (std::is_same_v<A, double>) {
      launch(ctx, "random_uniform", elements(ceil_div(n, 2)), draw_uniform_f64,
             data_of<double>(o.y), n, source, o.low, o.high);
    } else {
      launch(ctx, "random_uniform", groups(n), draw_uniform, operand(o.y), n, source, o.low,
             o.high);
    }
  });
  return 0;
}

int32_t random_normal_kernel(Context* ctx, const balora_random_normal& o) {
  const int64_t n = view_numel(*o.y);
  if (n == 0) return 0;
  dispatch_accumulator(o.y->dtype, [&]<typename A>() {
    launch(ctx, "random_normal", elements(ceil_div(n, 2)), draw_normal<A>, operand(o.y), n,
           Source{o.seed, o.stream}, o.mean, o.deviation);
  });
  return 0;
}

int32_t dropout_kernel(Context* ctx, const balora_dropout& o) {
  const int64_t n = view_numel(*o.x);
  if (n == 0) return 0;
  dispatch_accumulator(o.x->dtype, [&]<typename A>() {
    launch(ctx, "dropout", groups(n), drop_groups<A>, operand(o.x), operand(o.y), n,
           Source{o.seed, o.stream}, dropout_threshold(o.p), dropout_scale(o.p));
  });
  return 0;
}

}  // namespace balora::cuda
