// Comparisons (u8 results, 1 where true), where, and the finiteness of each element. One thread an
// element in a strided loop: masks are small beside what they choose from. Comparisons follow IEEE,
// a NaN equals nothing; where moves bytes and knows no types.
#include <cmath>

#include "elementwise/elementwise.cuh"
#include "kernels/shared/elementwise_math.h"

namespace balora::cuda {
namespace {

template <typename A>
__global__ void compare_elements(Operand a, Operand b, uint8_t* y,
                                 const __grid_constant__ Loop<3> loop, int32_t op) {
  for (int64_t i = thread_index(); i < loop.count; i += thread_count()) {
    int64_t at[3];
    offsets(loop, i, 1, at);
    y[at[2]] = comparison(op, read<A>(a, at[0]), read<A>(b, at[1])) ? 1 : 0;
  }
}

// A null operand is zero.
template <typename U>
__global__ void choose_elements(const uint8_t* condition, const U* a, const U* b, U* y,
                                const __grid_constant__ Loop<4> loop) {
  for (int64_t i = thread_index(); i < loop.count; i += thread_count()) {
    int64_t at[4];
    offsets(loop, i, 1, at);
    const bool first = condition[at[0]] != 0;
    const U* from = first ? a : b;
    y[at[3]] = from ? from[first ? at[1] : at[2]] : U{};
  }
}

template <typename A>
__global__ void find_finite(Operand x, uint8_t* y, int64_t n) {
  for (int64_t i = thread_index(); i < n; i += thread_count()) {
    const A value = read<A>(x, i);
    y[i] = value - value == A(0) ? 1 : 0;  // NaN and infinity give NaN
  }
}

}  // namespace

int32_t compare_kernel(Context* ctx, const balora_compare& o) {
  const Loop<3> loop = plan_loop<3>({o.a, o.b, o.y});
  if (loop.count == 0) return 0;
  const bool integers =
      o.a->dtype == BALORA_I32 || o.a->dtype == BALORA_I64 || o.a->dtype == BALORA_U8;
  const auto kernel = integers                   ? compare_elements<int64_t>
                      : o.a->dtype == BALORA_F64 ? compare_elements<double>
                                                 : compare_elements<float>;
  launch(ctx, "compare", elements(loop.count), kernel, operand(o.a), operand(o.b),
         data_of<uint8_t>(o.y), loop, o.op);
  return 0;
}

int32_t where_kernel(Context* ctx, const balora_where& o) {
  // y takes the place of a null operand in the loop.
  const Loop<4> loop = plan_loop<4>({o.condition, o.a ? o.a : o.y, o.b ? o.b : o.y, o.y});
  if (loop.count == 0) return 0;
  const auto choose = [&]<typename U>() {
    launch(ctx, "where", elements(loop.count), choose_elements<U>, data_of<uint8_t>(o.condition),
           data_of<U>(o.a), data_of<U>(o.b), data_of<U>(o.y), loop);
  };
  dispatch_any(o.y->dtype, [&]<typename T>() {
    if constexpr (sizeof(T) == 1) choose.template operator()<uint8_t>();
    if constexpr (sizeof(T) == 2) choose.template operator()<uint16_t>();
    if constexpr (sizeof(T) == 4) choose.template operator()<uint32_t>();
    if constexpr (sizeof(T) == 8) choose.template operator()<uint64_t>();
  });
  return 0;
}

int32_t is_finite_kernel(Context* ctx, const balora_is_finite& o) {
  const int64_t n = view_numel(*o.x);
  if (n == 0) return 0;
  dispatch_accumulator(o.x->dtype, [&]<typename A>() {
    launch(ctx, "is_finite", elements(n), find_finite<A>, operand(o.x), data_of<uint8_t>(o.y), n);
  });
  return 0;
}

}  // namespace balora::cuda
