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

template <int kActivation, typename A>
BALORA_INLINE Activated<A> activated(A x) {
  if constexpr (kActivation == BALORA_GATE_SILU) return silu<VectorMath>(x);
  if constexpr (kActivation == BALORA_GATE_GELU) return gelu<VectorMath>(x);
  if constexpr (kActivation == BALORA_GATE_GELU_TANH) return gelu_tanh<VectorMath>(x);
}

template <int kActivation, typename T>
BALORA_INLINE void forward_rows(const balora_gated_forward& o, int64_t begin, int64_t end) {
  const Rows<T> gate(o.gate), up(o.up), y(o.y);
  const int64_t width = o.gate->shape[1];
  for (int64_t n = begin; n < end; ++n) {
    const T *g = gate[n], *u = up[n];
    T* out = y[n];
#pragma omp simd
    for (int64_t f = 0; f < width; ++f) {
      out[f] = store<T>(activated<kActivation>(load(g[f])).value * load(u[f]));
    }
  }
}

template <int kActivation, typename T>
BALORA_INLINE void backward_rows(const balora_gated_backward& o, int64_t begin, int64_t end) {
  const Rows<T> dy(o.dy), gate(o.gate), up(o.up), dgate(o.dgate), dup(o.dup);
  const int64_t width = o.gate->shape[1];
  for (int64_t n = begin; n < end; ++n) {
    const T *d = dy[n], *g = gate[n], *u = up[n];
    T *dg = dgate[n], *du = dup[n];
#pragma omp simd
    for (int64_t f = 0; f < width; ++f) {
      const auto act = activated<kActivation>(load(g[f]));
      const Acc<T> slope = load(d[f]);
      dg[f] = store<T>(slope * load(u[f]) * act.slope);
      du[f] = store<T>(slope * act.value);
    }
  }
}

// Calls body.operator()<kActivation, T>(begin, end) for the rows of an operand.
template <typename O, typename Body>
void for_rows(Context* ctx, const O& o, const Body& body) {
  dispatch_float(o.gate->dtype, [&]<typename T>() {
    dispatch_op<BALORA_GATE_SILU, BALORA_GATE_GELU, BALORA_GATE_GELU_TANH>(
        o.activation, [&]<int kActivation>() {
          share_out(ctx, o.gate->shape[0], kGatedGrain, [&](int64_t begin, int64_t end) {
            body.template operator()<kActivation, T>(begin, end);
          });
        });
  });
}

void forward_any(Context* ctx, const balora_gated_forward& o) {
  for_rows(ctx, o, [&]<int kActivation, typename T>(int64_t begin, int64_t end) {
    at_level<&forward_rows<kActivation, T>>(o, begin, end);
  });
}

void backward_any(Context* ctx, const balora_gated_backward& o) {
  for_rows(ctx, o, [&]<int kActivation, typename T>(int64_t begin, int64_t end) {
    at_level<&backward_rows<kActivation, T>>(o, begin, end);
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
