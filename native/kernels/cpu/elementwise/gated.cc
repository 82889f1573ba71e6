// Gated activations of the mlp: y = act(gate) * up, with act silu (swiglu), gelu or gelu's tanh
// form (geglu). The backward recomputes act from gate, so only gate and up are kept. Rows may be
// strided: gate and up are usually the two halves of one product.
#include "kernels/cpu/elementwise/gated.h"

#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/implementation.h"
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

// Calls body.operator()<Act>() for an activation.
template <typename Body>
void dispatch_activation(balora_activation activation, const Body& body) {
  if (activation == BALORA_GATE_SILU) return body.template operator()<Silu>();
  if (activation == BALORA_GATE_GELU) return body.template operator()<Gelu>();
  body.template operator()<GeluTanh>();
}

void forward_any(Context* ctx, const balora_gated_forward& o) {
  dispatch_float(o.gate->dtype, [&]<typename T>() {
    const Forward<T> rows{Rows<T>(o.gate), Rows<T>(o.up), Rows<T>(o.y), o.gate->shape[1]};
    share_out(ctx, o.gate->shape[0], kGatedGrain, [&](int64_t begin, int64_t end) {
      dispatch_activation(
          o.activation, [&]<typename Act>() { at_level<&forward_rows<Act, T>>(rows, begin, end); });
    });
  });
}

void backward_any(Context* ctx, const balora_gated_backward& o) {
  dispatch_float(o.gate->dtype, [&]<typename T>() {
    const Backward<T> rows{.dy = Rows<T>(o.dy),
                           .gate = Rows<T>(o.gate),
                           .up = Rows<T>(o.up),
                           .dgate = Rows<T>(o.dgate),
                           .dup = Rows<T>(o.dup),
                           .width = o.gate->shape[1]};
    share_out(ctx, o.gate->shape[0], kGatedGrain, [&](int64_t begin, int64_t end) {
      dispatch_activation(o.activation, [&]<typename Act>() {
        at_level<&backward_rows<Act, T>>(rows, begin, end);
      });
    });
  });
}

template <typename O>
bool is_silu_of_bf16(const O& o) {
  return o.gate->dtype == BALORA_BF16 && o.activation == BALORA_GATE_SILU;
}

constexpr Implementation<balora_gated_forward> kForward[] = {
    BALORA_X86("avx512_bf16", platform::kBf16, is_silu_of_bf16, x86::swiglu_forward),
    {"any", 0, nullptr, forward_any},
};
constexpr Implementation<balora_gated_backward> kBackward[] = {
    BALORA_X86("avx512_bf16", platform::kBf16, is_silu_of_bf16, x86::swiglu_backward),
    {"any", 0, nullptr, backward_any},
};

}  // namespace

BALORA_IMPLEMENTATIONS(gated_forward, kForward)
BALORA_IMPLEMENTATIONS(gated_backward, kBackward)

int32_t gated_forward_kernel(Context* ctx, const balora_gated_forward& o) {
  return run_first(kForward, ctx, o);
}
int32_t gated_backward_kernel(Context* ctx, const balora_gated_backward& o) {
  return run_first(kBackward, ctx, o);
}

}  // namespace balora
