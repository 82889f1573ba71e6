// Elementwise functions of one contiguous operand and their gradients; kernels/shared/unary.h has
// the formulas. One kernel a function for the types that compute in f32: a thread takes eight
// elements, forward moves 4 bytes of bf16 an element and backward 6, and even erf stays below the
// 50 or more instructions an element that the memory's time allows. f64 is for checks: its
// functions share one kernel.
#include "elementwise/device_math.cuh"
#include "elementwise/elementwise.cuh"
#include "kernels/shared/unary.h"

namespace balora::cuda {
namespace {

template <int Op>
__global__ void forward_groups(Operand x, Operand y, int64_t n, float a, float b) {
  for (int64_t at = thread_index() * kGroup; at < n; at += thread_count() * kGroup) {
    const int count = group_count(n, at);
    float v[kGroup];
    read_group(x, at, count, v);
    BALORA_UNROLL
    for (int j = 0; j < kGroup; ++j) v[j] = unary_value<Op, DeviceMath>(v[j], a, b);
    write_group(y, at, count, v);
  }
}

template <int Op>
__global__ void backward_groups(Operand dy, Operand saved, Operand dx, int64_t n, float a,
                                float b) {
  for (int64_t at = thread_index() * kGroup; at < n; at += thread_count() * kGroup) {
    const int count = group_count(n, at);
    float slope[kGroup], v[kGroup];
    read_group(dy, at, count, slope);
    read_group(saved, at, count, v);
    BALORA_UNROLL
    for (int j = 0; j < kGroup; ++j) v[j] = slope[j] * unary_slope<Op, DeviceMath>(v[j], a, b);
    write_group(dx, at, count, v);
  }
}

__global__ void forward_f64(const double* x, double* y, int64_t n, int32_t op, double a, double b) {
#define FORWARD(OP)                                 \
  case OP:                                          \
    y[i] = unary_value<OP, DeviceMath>(x[i], a, b); \
    break;
  for (int64_t i = thread_index(); i < n; i += thread_count()) {
    switch (op) { BALORA_EACH_UNARY_OP(FORWARD) }
  }
#undef FORWARD
}

__global__ void backward_f64(const double* dy, const double* saved, double* dx, int64_t n,
                             int32_t op, double a, double b) {
#define BACKWARD(OP)                                             \
  case OP:                                                       \
    dx[i] = dy[i] * unary_slope<OP, DeviceMath>(saved[i], a, b); \
    break;
  for (int64_t i = thread_index(); i < n; i += thread_count()) {
    switch (op) { BALORA_EACH_UNARY_OP(BACKWARD) }
  }
#undef BACKWARD
}

auto forward_of(int32_t op) -> decltype(&forward_groups<BALORA_NEG>) {
#define FORWARD(OP) \
  case OP:          \
    return forward_groups<OP>;
  switch (op) { BALORA_EACH_UNARY_OP(FORWARD) }
#undef FORWARD
  throw std::runtime_error("function number " + std::to_string(op) + " is not known");
}

auto backward_of(int32_t op) -> decltype(&backward_groups<BALORA_NEG>) {
#define BACKWARD(OP) \
  case OP:           \
    return backward_groups<OP>;
  switch (op) { BALORA_EACH_UNARY_OP(BACKWARD) }
#undef BACKWARD
  throw std::runtime_error("function number " + std::to_string(op) + " is not known");
}

}  // namespace

int32_t unary_kernel(Context* ctx, const balora_unary& o) {
  const int64_t n = view_numel(*o.x);
  if (n == 0) return 0;
  dispatch_accumulator(o.x->dtype, [&]<typename A>() {
    if constexpr (std::is_same_v<A, double>) {
      launch(ctx, "unary", elements(n), forward_f64, data_of<double>(o.x), data_of<double>(o.y), n,
             o.op, o.a, o.b);
    } else {
      launch(ctx, "unary", groups(n), forward_of(o.op), operand(o.x), operand(o.y), n, o.a, o.b);
    }
  });
  return 0;
}

int32_t unary_backward_kernel(Context* ctx, const balora_unary_backward& o) {
  const int64_t n = view_numel(*o.dy);
  if (n == 0) return 0;
  dispatch_accumulator(o.dy->dtype, [&]<typename A>() {
    if constexpr (std::is_same_v<A, double>) {
      launch(ctx, "unary_backward", elements(n), backward_f64, data_of<double>(o.dy),
             data_of<double>(o.saved), data_of<double>(o.dx), n, o.op, o.a, o.b);
    } else {
      launch(ctx, "unary_backward", groups(n), backward_of(o.op), operand(o.dy), operand(o.saved),
             operand(o.dx), n, o.a, o.b);
    }
  });
  return 0;
}

}  // namespace balora::cuda
