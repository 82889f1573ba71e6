// Optimizers' updates of flat buffers, in place and in one pass: AdamW and SGD steps, scaling by
// a coefficient that stays on the device, adding a multiple, and the gradients' norm in f64. AdamW
// and the norm take any number of tensors and share all of them out at once.
// kernels/shared/optimizer.h has the formulas.
#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/shared/op_codes.h"
#include "kernels/shared/optimizer.h"

namespace balora {
namespace {

constexpr int64_t kGrain = 1 << 13;
constexpr int64_t kChunk = 1 << 15;  // elements summed by one task; the same for any thread count

template <typename T>
BALORA_INLINE void adamw(const T* grad, T* param, T* m, T* v, int64_t n, const AdamwFactors<T>& k) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    T updated = param[i], first = m[i], second = v[i];
    adamw_update(k, grad[i], updated, first, second);
    m[i] = first;
    v[i] = second;
    param[i] = updated;
  }
}

template <typename T>
BALORA_INLINE void sgd(const T* grad, T scale, T* param, T* buffer, int64_t n,
                       const SgdFactors<T>& k) {
  if (!buffer) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) param[i] -= k.lr * sgd_gradient(k, grad[i], scale, param[i]);
    return;
  }
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const T g = sgd_gradient(k, grad[i], scale, param[i]);
    const T moment = sgd_moment(k, g, buffer[i]);
    buffer[i] = moment;
    param[i] -= k.lr * sgd_direction(k, g, moment);
  }
}

template <typename T>
BALORA_INLINE double norm_of(const T* x, int64_t n, int kind) {
  double total = 0;
  if (kind == BALORA_NORM_1) {
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < n; ++i) total += std::abs(static_cast<double>(load(x[i])));
  } else if (kind == BALORA_NORM_2) {
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < n; ++i) {
      const auto value = static_cast<double>(load(x[i]));
      total += value * value;
    }
  } else {
    int nan = 0;
#pragma omp simd reduction(max : total) reduction(| : nan)
    for (int64_t i = 0; i < n; ++i) {
      const double value = std::abs(static_cast<double>(load(x[i])));
      nan |= value != value;
      total = value > total ? value : total;
    }
    if (nan) total = std::nan("");
  }
  return total;
}

double scale_of(const View* coefficient) {
  return coefficient ? *data_of<double>(coefficient) : 1.0;
}

// y = factor x; both may be one.
int32_t write_multiple(Context* ctx, const View& x, double factor, const View& y) {
  dispatch_float(x.dtype, [&]<typename T>() {
    const T* in = data_of<T>(&x);
    T* out = data_of<T>(&y);
    parallel_for(ctx, view_numel(x), kGrain, [&](int64_t begin, int64_t end) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) {
        out[i] = store<T>(load(in[i]) * static_cast<Acc<T>>(factor));
      }
    });
  });
  return 0;
}

}  // namespace

int32_t adamw_step_kernel(Context* ctx, const balora_adamw_step& o) {
  const std::span tensors(o.tensors->at, static_cast<size_t>(o.tensors->count));
  std::vector<int64_t> starts{0};  // of the tensors, laid end to end
  for (const AdamwOperands& t : tensors) {
    dispatch_optimizer_state(t.param->dtype, []<typename T>() {});
    starts.push_back(starts.back() + view_numel(*t.param));
  }
  const auto step = [&](const AdamwOperands& t, int64_t begin, int64_t end) {
    const double* rate = data_of<double>(t.rate);
    dispatch_optimizer_state(t.param->dtype, [&]<typename T>() {
      const AdamwFactors<T> k{.decay = adamw_decay<T>(rate, t.weight_decay),
                              .keep1 = static_cast<T>(1 - o.beta1),
                              .keep2 = static_cast<T>(1 - o.beta2),
                              .step = static_cast<T>(rate[BALORA_RATE_STEP]),
                              .root = static_cast<T>(rate[BALORA_RATE_ROOT]),
                              .eps = static_cast<T>(o.eps),
                              .scale = static_cast<T>(scale_of(o.coefficient))};
      at_level<&adamw<T>>(data_of<T>(t.grad) + begin, data_of<T>(t.param) + begin,
                          data_of<T>(t.m) + begin, data_of<T>(t.v) + begin, end - begin, k);
    });
  };
  parallel_for(ctx, starts.back(), kGrain, [&](int64_t begin, int64_t end) {
    const auto first = std::upper_bound(starts.begin(), starts.end(), begin) - 1;
    for (auto i = static_cast<size_t>(first - starts.begin()); starts[i] < end; ++i) {
      step(tensors[i], std::max(begin, starts[i]) - starts[i],
           std::min(end, starts[i + 1]) - starts[i]);
      if (i + 1 == tensors.size()) break;
    }
  });
  return 0;
}

int32_t sgd_step_kernel(Context* ctx, const balora_sgd_step& o) {
  dispatch_optimizer_state(o.param->dtype, [&]<typename T>() {
    const auto k = sgd_factors<T>(o);
    const T scale = static_cast<T>(scale_of(o.coefficient));
    parallel_for(ctx, view_numel(*o.param), kGrain, [&](int64_t begin, int64_t end) {
      at_level<&sgd<T>>(data_of<T>(o.grad) + begin, scale, data_of<T>(o.param) + begin,
                        o.buffer ? data_of<T>(o.buffer) + begin : nullptr, end - begin, k);
    });
  });
  return 0;
}

int32_t norm_accumulate_kernel(Context* ctx, const balora_norm_accumulate& o) {
  struct Chunk {
    const View* x;
    int64_t begin;
    double norm;
  };
  std::vector<Chunk> chunks;
  for (int32_t t = 0; t < o.tensors->count; ++t) {
    const View* x = o.tensors->at[t];
    dispatch_float(x->dtype, []<typename T>() {});
    for (int64_t begin = 0; begin < view_numel(*x); begin += kChunk)
      chunks.push_back({x, begin, 0});
  }
  const auto count = static_cast<int64_t>(chunks.size());
  parallel_for(ctx, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      Chunk& chunk = chunks[static_cast<size_t>(i)];
      dispatch_float(chunk.x->dtype, [&]<typename T>() {
        const int64_t count = std::min(kChunk, view_numel(*chunk.x) - chunk.begin);
        chunk.norm = at_level<&norm_of<T>>(data_of<T>(chunk.x) + chunk.begin, count, o.kind);
      });
    }
  });
  double& sum = *data_of<double>(o.total);
  for (const Chunk& chunk : chunks) {
    const double part = chunk.norm;
    if (o.kind == BALORA_NORM_INF) {
      sum = part > sum || part != part ? part : sum;
    } else {
      sum += part;
    }
  }
  return 0;
}

int32_t scale_kernel(Context* ctx, const balora_scale& o) {
  return write_multiple(ctx, *o.x, scale_of(o.coefficient), *o.x);
}

int32_t scale_by_kernel(Context* ctx, const balora_scale_by& o) {
  return write_multiple(ctx, *o.x, *data_of<double>(o.factor), *o.y);
}

int32_t add_scaled_kernel(Context* ctx, const balora_add_scaled& o) {
  dispatch_float(o.destination->dtype, [&]<typename D>() {
    dispatch_float(o.source->dtype, [&]<typename S>() {
      using A = Acc<D>;
      parallel_for(ctx, view_numel(*o.destination), kGrain, [&](int64_t begin, int64_t end) {
        D* d = data_of<D>(o.destination);
        const S* s = data_of<S>(o.source);
        for (int64_t i = begin; i < end; ++i) {
          d[i] = store<D>(load(d[i]) + static_cast<A>(o.alpha) * static_cast<A>(load(s[i])));
        }
      });
    });
  });
  return 0;
}

}  // namespace balora
