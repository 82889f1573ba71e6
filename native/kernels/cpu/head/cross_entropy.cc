// Cross-entropy of rows of logits against class ids; rows whose target is kIgnored count for
// nothing. The plain form, for heads whose logits exist anyway; the fused head losses never build
// them.
//   loss_n = lse(z_n) - z_n[target],  dz_n = (softmax(z_n) - onehot(target)) * dloss * scale
#include <limits>
#include <vector>

#include "kernels/cpu/head/log_sum_exp.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/parallel.h"

namespace balora {
namespace {

constexpr int32_t kIgnored = -100;

template <typename T, typename A = Acc<T>>
BALORA_INLINE void forward_rows(const T* logits, const int32_t* targets, double* losses, A* lse,
                                int64_t begin, int64_t end, int64_t classes) {
  for (int64_t n = begin; n < end; ++n) {
    losses[n] = 0;
    lse[n] = 0;
    if (targets[n] == kIgnored) continue;
    const T* row = logits + n * classes;
    const double exact = row_log_sum_exp(row, classes);
    lse[n] = static_cast<A>(exact);
    losses[n] = exact - static_cast<double>(load(row[targets[n]]));
  }
}

// `weight` is the gradient of each row's loss; per row (stride 1) or the same for all (stride 0),
// times `scale`.
template <typename T, typename A = Acc<T>>
BALORA_INLINE void backward_rows(const A* weight, int64_t weight_stride, A scale, const T* logits,
                                 const int32_t* targets, const A* lse, T* dlogits, int64_t begin,
                                 int64_t end, int64_t classes) {
  for (int64_t n = begin; n < end; ++n) {
    const T* row = logits + n * classes;
    T* out = dlogits + n * classes;
    if (targets[n] == kIgnored) {
      std::fill(out, out + classes, T{});
      continue;
    }
    const A slope = weight[n * weight_stride] * scale, shift = lse[n];
#pragma omp simd
    for (int64_t v = 0; v < classes; ++v) out[v] = store<T>(vexp(load(row[v]) - shift) * slope);
    const A p = vexp(load(row[targets[n]]) - shift);
    out[targets[n]] = store<T>((p - A(1)) * slope);  // p - 1 is formed before rounding
  }
}

// target_clones cannot mark a template, so each dtype gets plain functions of its own.
#define ROWS(T)                                                                             \
  BALORA_SIMD void forward(const T* z, const int32_t* targets, double* losses, Acc<T>* lse, \
                           int64_t b, int64_t e, int64_t classes) {                         \
    forward_rows<T>(z, targets, losses, lse, b, e, classes);                                \
  }                                                                                         \
  BALORA_SIMD void backward(const Acc<T>* w, int64_t w_stride, Acc<T> scale, const T* z,    \
                            const int32_t* targets, const Acc<T>* lse, T* dz, int64_t b,    \
                            int64_t e, int64_t classes) {                                   \
    backward_rows<T>(w, w_stride, scale, z, targets, lse, dz, b, e, classes);               \
  }
ROWS(float)
ROWS(bf16)
ROWS(f16)
ROWS(double)
#undef ROWS

// The number of rows that count; a target outside the classes is the caller's fault.
int64_t count_targets(const int32_t* targets, int64_t rows, int64_t classes) {
  int64_t counted = 0;
  for (int64_t n = 0; n < rows; ++n) {
    if (targets[n] == kIgnored) continue;
    if (targets[n] < 0 || targets[n] >= classes) {
      throw ArgumentError(concat("target ", targets[n], " of row ", n, " is not a class id below ",
                                 classes, " (", kIgnored, " marks a row to ignore)"));
    }
    ++counted;
  }
  return counted;
}

}  // namespace

int32_t cross_entropy_forward_kernel(Context* ctx, const balora_cross_entropy_forward& o) {
  const int64_t rows = o.logits->shape[0], classes = o.logits->shape[1];
  const int32_t* target = data_of<int32_t>(o.targets);
  const int64_t counted = count_targets(target, rows, classes);
  dispatch_float(o.logits->dtype, [&]<typename T>() {
    using A = Acc<T>;
    std::vector<double> losses(static_cast<size_t>(rows));
    parallel_for(ctx, rows, 1, [&](int64_t begin, int64_t end) {
      forward(data_of<T>(o.logits), target, losses.data(), data_of<A>(o.lse), begin, end, classes);
    });
    A* out = data_of<A>(o.loss);
    if (o.reduction == BALORA_REDUCTION_NONE) {
      for (int64_t n = 0; n < rows; ++n) out[n] = static_cast<A>(losses[static_cast<size_t>(n)]);
      return;
    }
    double total = 0;
    for (const double value : losses) total += value;
    out[0] = static_cast<A>(
        o.reduction == BALORA_REDUCTION_MEAN ? total / static_cast<double>(counted) : total);
  });
  return 0;
}

int32_t cross_entropy_backward_kernel(Context* ctx, const balora_cross_entropy_backward& o) {
  const int64_t rows = o.logits->shape[0], classes = o.logits->shape[1];
  const int32_t* target = data_of<int32_t>(o.targets);
  const int64_t counted = count_targets(target, rows, classes);
  dispatch_float(o.logits->dtype, [&]<typename T>() {
    using A = Acc<T>;
    const A scale = o.reduction == BALORA_REDUCTION_MEAN
                        ? static_cast<A>(1.0 / static_cast<double>(counted))
                        : A(1);
    parallel_for(ctx, rows, 1, [&](int64_t begin, int64_t end) {
      backward(data_of<A>(o.dloss), o.reduction == BALORA_REDUCTION_NONE ? 1 : 0, scale,
               data_of<T>(o.logits), target, data_of<A>(o.lse), data_of<T>(o.dlogits), begin, end,
               classes);
    });
  });
  return 0;
}

}  // namespace balora
