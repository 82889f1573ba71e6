// Gated activations of the mlp: y = act(gate) * up, with act silu (swiglu), gelu or gelu's tanh
// form (geglu). The backward recomputes act from gate, so only gate and up are kept. Rows may be
// strided: gate and up are usually the two halves of one product.
#include "kernels/cpu/elementwise/gated_bf16.h"
#include "kernels/cpu/products/tiles.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/vec_math.h"
#include "kernels/shared/activations.h"

namespace balora {
namespace {

struct Silu {
  template <typename A>
  static BALORA_INLINE Activated<A> at(A x) {
    return silu<VectorMath>(x);
  }
};
struct Gelu {
  template <typename A>
  static BALORA_INLINE Activated<A> at(A x) {
    return gelu<VectorMath>(x);
  }
};
struct GeluTanh {
  template <typename A>
  static BALORA_INLINE Activated<A> at(A x) {
    return gelu_tanh<VectorMath>(x);
  }
};

// Row n of an operand starts at data + n * stride.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;
  explicit Rows(const View* v) : data(data_of<T>(v)), stride(v ? v->stride[0] : 0) {}
  BALORA_INLINE T* operator[](int64_t n) const { return data + n * stride; }
};

template <typename T>
struct Forward {
  Rows<T> gate, up, y;
  int64_t width;
};

template <typename T>
struct Backward {
  Rows<T> dy, gate, up, dgate, dup;
  int64_t width;
};

template <typename Act, typename T>
BALORA_INLINE void forward_rows(const Forward<T>& o, int64_t begin, int64_t end) {
  const int64_t width = o.width;
  for (int64_t n = begin; n < end; ++n) {
    const T *g = o.gate[n], *u = o.up[n];
    T* out = o.y[n];
#pragma omp simd
    for (int64_t f = 0; f < width; ++f) {
      out[f] = store<T>(Act::template at<Acc<T>>(load(g[f])).value * load(u[f]));
    }
  }
}

template <typename Act, typename T>
BALORA_INLINE void backward_rows(const Backward<T>& o, int64_t begin, int64_t end) {
  const int64_t width = o.width;
  for (int64_t n = begin; n < end; ++n) {
    const T *d = o.dy[n], *g = o.gate[n], *u = o.up[n];
    T *dg = o.dgate[n], *du = o.dup[n];
#pragma omp simd
    for (int64_t f = 0; f < width; ++f) {
      const auto act = Act::template at<Acc<T>>(load(g[f]));
      const Acc<T> slope = load(d[f]);
      dg[f] = store<T>(slope * load(u[f]) * act.slope);
      du[f] = store<T>(slope * act.value);
    }
  }
}

template <typename T>
BALORA_INLINE void forward_loop(const Forward<T>& o, balora_activation activation, int64_t b,
                                int64_t e) {
  if (activation == BALORA_GATE_SILU) return forward_rows<Silu>(o, b, e);
  if (activation == BALORA_GATE_GELU) return forward_rows<Gelu>(o, b, e);
  forward_rows<GeluTanh>(o, b, e);
}

template <typename T>
void forward(const Forward<T>& o, balora_activation activation, int64_t b, int64_t e) {
  at_level<&forward_loop<T>>(o, activation, b, e);
}

template <typename T>
BALORA_INLINE void backward_loop(const Backward<T>& o, balora_activation activation, int64_t b,
                                 int64_t e) {
  if (activation == BALORA_GATE_SILU) return backward_rows<Silu>(o, b, e);
  if (activation == BALORA_GATE_GELU) return backward_rows<Gelu>(o, b, e);
  backward_rows<GeluTanh>(o, b, e);
}

template <typename T>
void backward(const Backward<T>& o, balora_activation activation, int64_t b, int64_t e) {
  at_level<&backward_loop<T>>(o, activation, b, e);
}

constexpr int64_t kRowGrain = 4;

// Whether rows of T have functions of their own.
template <typename T>
bool has_lanes(balora_activation activation) {
  return std::is_same_v<T, bf16> && activation == BALORA_GATE_SILU && tiles_ready();
}

}  // namespace

int32_t gated_forward_kernel(Context* ctx, const balora_gated_forward& o) {
  dispatch_float(o.gate->dtype, [&]<typename T>() {
    const bool lanes = has_lanes<T>(o.activation);
    const int64_t width = o.gate->shape[1];
    share_out(ctx, o.gate->shape[0], kRowGrain, [&](int64_t begin, int64_t end) {
      const Rows<T> g(o.gate), u(o.up), to(o.y);
      if constexpr (std::is_same_v<T, bf16>) {
        for (int64_t n = begin; lanes && n < end; ++n) swiglu_row_bf16(g[n], u[n], to[n], width);
      }
      if (lanes) return;
      const Forward<T> rows{.gate = g, .up = u, .y = to, .width = width};
      forward(rows, o.activation, begin, end);
    });
  });
  return 0;
}

int32_t gated_backward_kernel(Context* ctx, const balora_gated_backward& o) {
  dispatch_float(o.gate->dtype, [&]<typename T>() {
    const bool lanes = has_lanes<T>(o.activation);
    const int64_t width = o.gate->shape[1];
    share_out(ctx, o.gate->shape[0], kRowGrain, [&](int64_t begin, int64_t end) {
      const Rows<T> d(o.dy), g(o.gate), u(o.up), dg(o.dgate), du(o.dup);
      if constexpr (std::is_same_v<T, bf16>) {
        for (int64_t n = begin; lanes && n < end; ++n) {
          swiglu_backward_row_bf16(d[n], g[n], u[n], dg[n], du[n], width);
        }
      }
      if (lanes) return;
      const Backward<T> rows{.dy = d, .gate = g, .up = u, .dgate = dg, .dup = du, .width = width};
      backward(rows, o.activation, begin, end);
    });
  });
  return 0;
}

}  // namespace balora
