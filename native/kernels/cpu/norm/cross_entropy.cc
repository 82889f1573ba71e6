// Cross-entropy of rows of logits against class ids; rows whose target is BALORA_IGNORED_TARGET do
// not count. It is for logits that exist anyway: the fused head losses never build them.
//   loss_n = lse(z_n) - z_n[target]
//   dz_n = (softmax(z_n) - onehot(target)) * dloss * scale
#include <algorithm>
#include <vector>

#include "kernels/cpu/norm/log_sum_exp.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/shared/messages.h"

namespace balora {
namespace {

template <typename T>
BALORA_INLINE void forward_rows(const balora_cross_entropy_forward& o, double* losses,
                                int64_t begin, int64_t end) {
  const int64_t classes = o.logits->shape[1];
  for (int64_t n = begin; n < end; ++n) {
    const int32_t target = data_of<int32_t>(o.targets)[n];
    auto& lse = data_of<Acc<T>>(o.lse)[n];
    losses[n] = 0;
    lse = 0;
    if (target == BALORA_IGNORED_TARGET) continue;
    const T* row = data_of<T>(o.logits) + n * classes;
    const double exact = row_log_sum_exp(row, classes);
    lse = static_cast<Acc<T>>(exact);
    losses[n] = exact - static_cast<double>(load(row[target]));
  }
}

// `scale` multiplies the gradient of each row's loss.
template <typename T>
BALORA_INLINE void backward_rows(const balora_cross_entropy_backward& o, Acc<T> scale,
                                 int64_t begin, int64_t end) {
  using A = Acc<T>;
  const int64_t classes = o.logits->shape[1];
  for (int64_t n = begin; n < end; ++n) {
    const int32_t target = data_of<int32_t>(o.targets)[n];
    const T* row = data_of<T>(o.logits) + n * classes;
    T* out = data_of<T>(o.dlogits) + n * classes;
    if (target == BALORA_IGNORED_TARGET) {
      std::fill(out, out + classes, T{});
      continue;
    }
    const A shift = data_of<A>(o.lse)[n];
    const A slope = data_of<A>(o.dloss)[o.reduction == BALORA_REDUCTION_NONE ? n : 0] * scale;
#pragma omp simd
    for (int64_t v = 0; v < classes; ++v) out[v] = store<T>(vexp(load(row[v]) - shift) * slope);
    const A p = vexp(load(row[target]) - shift);
    out[target] = store<T>((p - A(1)) * slope);  // p - 1 is formed before rounding
  }
}

// The number of rows that count; a target outside the classes is the caller's fault.
int64_t count_targets(const int32_t* targets, int64_t rows, int64_t classes) {
  int64_t counted = 0;
  for (int64_t n = 0; n < rows; ++n) {
    if (targets[n] == BALORA_IGNORED_TARGET) continue;
    if (targets[n] < 0 || targets[n] >= classes) {
      throw ArgumentError(messages::target_out_of_range(targets[n], n, classes));
    }
    ++counted;
  }
  return counted;
}

}  // namespace

int32_t cross_entropy_forward_kernel(Context* ctx, const balora_cross_entropy_forward& o) {
  const int64_t rows = o.logits->shape[0], classes = o.logits->shape[1];
  const int64_t counted = count_targets(data_of<int32_t>(o.targets), rows, classes);
  dispatch_float(o.logits->dtype, [&]<typename T>() {
    using A = Acc<T>;
    std::vector<double> losses(static_cast<size_t>(rows));
    parallel_for(ctx, rows, 1, [&](int64_t begin, int64_t end) {
      at_level<&forward_rows<T>>(o, losses.data(), begin, end);
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
  const int64_t counted = count_targets(data_of<int32_t>(o.targets), rows, classes);
  dispatch_float(o.logits->dtype, [&]<typename T>() {
    using A = Acc<T>;
    const A scale = o.reduction == BALORA_REDUCTION_MEAN
                        ? static_cast<A>(1.0 / static_cast<double>(counted))
                        : A(1);
    parallel_for(ctx, rows, 1, [&](int64_t begin, int64_t end) {
      at_level<&backward_rows<T>>(o, scale, begin, end);
    });
  });
  return 0;
}

}  // namespace balora
