// What an optimiser does to flat buffers, in place and in one pass: AdamW and SGD steps, scaling by
// a coefficient that stays on the device, adding a multiple, and the gradients' norm in f64
// (kernels/cpu/optimizer.cc has the formulas). A thread takes eight elements of every buffer: AdamW
// moves 28 bytes of f32 an element for some 20 instructions and is bound by memory. Norms are
// summed in f64 in two passes whose order depends on the size alone.
#include <cmath>

#include "elementwise.cuh"
#include "kernels/op_codes.h"

namespace balora::cuda {
namespace {

template <typename T>
struct Adam {
  T keep1, keep2, eps;  // 1-b1, 1-b2
  double weight_decay;
};

template <typename T>
__device__ T scale_of(const double* coefficient) {
  return coefficient ? static_cast<T>(*coefficient) : T(1);
}

template <typename T>
__global__ void adamw_groups(Operand grad, const double* coefficient, const double* rate,
                             Operand param, Operand m, Operand v, int64_t n, Adam<T> k) {
  const T scale = scale_of<T>(coefficient);
  // 1-lr*wd, lr/c1, 1/sqrt(c2)
  const T decay = static_cast<T>(1 - rate[0] * k.weight_decay), step = static_cast<T>(rate[1]),
          root = static_cast<T>(rate[2]);
  for (int64_t at = thread_index() * kGroup; at < n; at += thread_count() * kGroup) {
    const int count = group_count(n, at);
    T g[kGroup], p[kGroup], first[kGroup], second[kGroup];
    read_group(grad, at, count, g);
    read_group(param, at, count, p);
    read_group(m, at, count, first);
    read_group(v, at, count, second);
    BALORA_UNROLL
    for (int j = 0; j < kGroup; ++j) {
      const T scaled = g[j] * scale;
      first[j] += k.keep1 * (scaled - first[j]);
      second[j] += k.keep2 * (scaled * scaled - second[j]);
      p[j] = p[j] * decay - step * first[j] / (std::sqrt(second[j]) * root + k.eps);
    }
    write_group(m, at, count, first);
    write_group(v, at, count, second);
    write_group(param, at, count, p);
  }
}

template <typename T>
struct Sgd {
  T lr, momentum, fresh, decay;  // fresh: 1-dampening
  int32_t nesterov, first;
};

template <typename T>
__global__ void sgd_groups(Operand grad, const double* coefficient, Operand param, Operand buffer,
                           int64_t n, Sgd<T> k) {
  const T scale = scale_of<T>(coefficient);
  for (int64_t at = thread_index() * kGroup; at < n; at += thread_count() * kGroup) {
    const int count = group_count(n, at);
    T g[kGroup], p[kGroup], moment[kGroup];
    read_group(grad, at, count, g);
    read_group(param, at, count, p);
    BALORA_UNROLL
    for (int j = 0; j < kGroup; ++j) moment[j] = g[j] = g[j] * scale + k.decay * p[j];
    if (buffer.data) {
      if (!k.first) {  // in the first step the buffer holds nothing yet
        read_group(buffer, at, count, moment);
        BALORA_UNROLL
        for (int j = 0; j < kGroup; ++j) moment[j] = k.momentum * moment[j] + k.fresh * g[j];
      }
      write_group(buffer, at, count, moment);
    }
    BALORA_UNROLL
    for (int j = 0; j < kGroup; ++j) {
      p[j] -= k.lr * (k.nesterov && buffer.data ? g[j] + k.momentum * moment[j] : moment[j]);
    }
    write_group(param, at, count, p);
  }
}

// destination = read * factor, or in place.
template <typename A>
__global__ void scale_groups(Operand x, const double* factor, Operand y, int64_t n) {
  const A by = scale_of<A>(factor);
  for (int64_t at = thread_index() * kGroup; at < n; at += thread_count() * kGroup) {
    const int count = group_count(n, at);
    A value[kGroup];
    read_group(x, at, count, value);
    BALORA_UNROLL
    for (int j = 0; j < kGroup; ++j) value[j] *= by;
    write_group(y, at, count, value);
  }
}

template <typename A>
__global__ void add_scaled_groups(Operand source, Operand destination, int64_t n, A alpha) {
  for (int64_t at = thread_index() * kGroup; at < n; at += thread_count() * kGroup) {
    const int count = group_count(n, at);
    A more[kGroup], value[kGroup];
    read_group(source, at, count, more);
    read_group(destination, at, count, value);
    BALORA_UNROLL
    for (int j = 0; j < kGroup; ++j) value[j] += alpha * more[j];
    write_group(destination, at, count, value);
  }
}

// ---- Norms --------------------------------------------------------------------------------------

constexpr int kNormThreads = 256;
constexpr int64_t kNormBlocks = 1024;  // at most: the second pass is one block's

__device__ double join(int32_t kind, double a, double b) {
  return kind == BALORA_NORM_INF ? Max()(a, b) : a + b;
}
__device__ double join_block(int32_t kind, double value, double* scratch) {
  if (kind == BALORA_NORM_INF) return block_reduce(value, 0.0, scratch, Max());
  return block_reduce(value, 0.0, scratch);
}

__global__ void norm_pieces(Operand x, int64_t n, int32_t kind, double* partial) {
  BALORA_SHARED(double, scratch, kWarp + 1);
  double total = 0;
  for (int64_t at = thread_index() * kGroup; at < n; at += thread_count() * kGroup) {
    double value[kGroup];
    read_group(x, at, group_count(n, at), value);
    BALORA_UNROLL
    for (int j = 0; j < kGroup; ++j) {
      total = join(kind, total, kind == BALORA_NORM_2 ? value[j] * value[j] : std::abs(value[j]));
    }
  }
  total = join_block(kind, total, scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

__global__ void norm_total(const double* partial, int64_t pieces, int32_t kind, double* sum) {
  BALORA_SHARED(double, scratch, kWarp + 1);
  double total = 0;
  for (int64_t i = threadIdx.x; i < pieces; i += blockDim.x) total = join(kind, total, partial[i]);
  total = join_block(kind, total, scratch);
  if (threadIdx.x == 0) *sum = join(kind, *sum, total);
}

// The types that optimiser state may have.
template <typename Body>
void dispatch_state(const View* param, Body&& body) {
  if (param->dtype == BALORA_F32) return body.template operator()<float>();
  if (param->dtype == BALORA_F64) return body.template operator()<double>();
  throw std::runtime_error("optimiser state must be f32 or f64");
}

}  // namespace

int32_t adamw_step_kernel(Context* ctx, const View* grad, const View* coefficient, const View* rate,
                          const View* param, const View* m, const View* v, double beta1,
                          double beta2, double eps, double weight_decay) {
  const int64_t n = view_numel(*param);
  dispatch_state(param, [&]<typename T>() {
    const Adam<T> k{static_cast<T>(1 - beta1), static_cast<T>(1 - beta2), static_cast<T>(eps),
                    weight_decay};
    if (n == 0) return;
    launch(ctx, "adamw_step", groups(n), adamw_groups<T>, operand(grad),
           data_of<double>(coefficient), data_of<double>(rate), operand(param), operand(m),
           operand(v), n, k);
  });
  return 0;
}

int32_t sgd_step_kernel(Context* ctx, const View* grad, const View* coefficient, const View* param,
                        const View* buffer, double lr, double momentum, double dampening,
                        double weight_decay, int32_t nesterov, int32_t first) {
  const int64_t n = view_numel(*param);
  dispatch_state(param, [&]<typename T>() {
    const Sgd<T> k{static_cast<T>(lr),
                   static_cast<T>(momentum),
                   static_cast<T>(1 - dampening),
                   static_cast<T>(weight_decay),
                   nesterov,
                   first};
    if (n == 0) return;
    launch(ctx, "sgd_step", groups(n), sgd_groups<T>, operand(grad), data_of<double>(coefficient),
           operand(param), operand(buffer), n, k);
  });
  return 0;
}

int32_t norm_accumulate_kernel(Context* ctx, const View* x, const View* total, int32_t kind) {
  const int64_t n = view_numel(*x);
  if (n == 0) return 0;
  const int64_t pieces = std::min(ceil_div(n, kNormThreads * kGroup), kNormBlocks);
  auto* partial = workspace<double>(ctx, pieces);
  const Grid grid{dim3(static_cast<unsigned>(pieces)), dim3(kNormThreads)};
  launch(ctx, "norm_accumulate", grid, norm_pieces, operand(x), n, kind, partial);
  launch(ctx, "norm_accumulate", Grid{dim3(1), dim3(kNormThreads)}, norm_total, partial, pieces,
         kind, data_of<double>(total));
  return 0;
}

int32_t scale_kernel(Context* ctx, const View* coefficient, const View* x) {
  const int64_t n = view_numel(*x);
  if (n == 0) return 0;
  dispatch_accumulator(x->dtype, [&]<typename A>() {
    launch(ctx, "scale", groups(n), scale_groups<A>, operand(x), data_of<double>(coefficient),
           operand(x), n);
  });
  return 0;
}

int32_t scale_by_kernel(Context* ctx, const View* x, const View* factor, const View* y) {
  const int64_t n = view_numel(*x);
  if (n == 0) return 0;
  dispatch_accumulator(x->dtype, [&]<typename A>() {
    launch(ctx, "scale_by", groups(n), scale_groups<A>, operand(x), data_of<double>(factor),
           operand(y), n);
  });
  return 0;
}

int32_t add_scaled_kernel(Context* ctx, const View* source, const View* destination, double alpha) {
  const int64_t n = view_numel(*destination);
  if (n == 0) return 0;
  dispatch_accumulator(destination->dtype, [&]<typename A>() {
    launch(ctx, "add_scaled", groups(n), add_scaled_groups<A>, operand(source),
           operand(destination), n, alpha);
  });
  return 0;
}

}  // namespace balora::cuda
