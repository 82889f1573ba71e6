// Elementwise ops on two strided views of one (broadcast) shape, and the gradients that are no
// products. A thread takes groups of eight along the innermost dimension: contiguous operands move
// by accesses of 16 bytes, a broadcast scalar or row costs no memory traffic of its own. Bytes of
// bf16: 6 an element for equal shapes, 4 for a broadcast operand. kernels/shared/elementwise_math.h
// has the formulas.
#include "elementwise/elementwise.cuh"
#include "kernels/shared/elementwise_math.h"

namespace balora::cuda {
namespace {

template <int Op, typename A>
__device__ void apply_group(const A (&a)[kGroup], A (&b)[kGroup]) {
  BALORA_UNROLL
  for (int j = 0; j < kGroup; ++j) b[j] = binary_value<Op>(a[j], b[j]);
}

// Power has a kernel of its own: its registers would cost the others their occupancy.
template <typename A, bool Power>
__global__ void binary_groups(Operand a, Operand b, Operand y, const __grid_constant__ Loop<3> loop,
                              int32_t op) {
  for (int64_t g = thread_index(); g < loop.count; g += thread_count()) {
    int64_t at[3];
    const int count = group_offsets(loop, g, at);
    A left[kGroup], right[kGroup];
    read_group(a, at[0], loop.step(0), count, left);
    read_group(b, at[1], loop.step(1), count, right);
    if constexpr (Power) {
      apply_group<BALORA_POW>(left, right);
    } else if (op == BALORA_ADD) {
      apply_group<BALORA_ADD>(left, right);
    } else if (op == BALORA_SUB) {
      apply_group<BALORA_SUB>(left, right);
    } else if (op == BALORA_MUL) {
      apply_group<BALORA_MUL>(left, right);
    } else if (op == BALORA_MAXIMUM) {
      apply_group<BALORA_MAXIMUM>(left, right);
    } else if (op == BALORA_MINIMUM) {
      apply_group<BALORA_MINIMUM>(left, right);
    } else if constexpr (!std::is_integral_v<A>) {
      apply_group<BALORA_DIV>(left, right);
    }
    write_group(y, at[2], loop.step(2), count, right);
  }
}

template <typename A>
__global__ void gradient_elements(Operand dy, Operand a, Operand b, Operand da, Operand db,
                                  const __grid_constant__ Loop<5> loop, int32_t op) {
  for (int64_t i = thread_index(); i < loop.count; i += thread_count()) {
    int64_t at[5];
    offsets(loop, i, 1, at);
    A to_a, to_b;
    binary_gradients(op, read<A>(dy, at[0]), read<A>(a, at[1]), read<A>(b, at[2]), to_a, to_b);
    if (da.data) write(da, at[3], to_a);
    if (db.data) write(db, at[4], to_b);
  }
}

template <typename A, bool Power>
void launch_binary(Context* ctx, const View* a, const View* b, const View* y, int32_t op) {
  const Loop<3> loop = plan_loop<3>({a, b, y}), by_eight = by_groups(loop);
  launch(ctx, "binary", elements(by_eight.count), binary_groups<A, Power>, operand(a, loop, 0),
         operand(b, loop, 1), operand(y, loop, 2), by_eight, op);
}

}  // namespace

int32_t binary_kernel(Context* ctx, const balora_binary& o) {
  if (o.y->dtype == BALORA_U8) throw std::runtime_error("u8 has no arithmetic");
  if (view_numel(*o.y) == 0) return 0;
  if (o.y->dtype == BALORA_I32 || o.y->dtype == BALORA_I64) {
    launch_binary<int64_t, false>(ctx, o.a, o.b, o.y, o.op);
    return 0;
  }
  dispatch_accumulator(o.y->dtype, [&]<typename A>() {
    if (o.op == BALORA_POW) return launch_binary<A, true>(ctx, o.a, o.b, o.y, o.op);
    launch_binary<A, false>(ctx, o.a, o.b, o.y, o.op);
  });
  return 0;
}

int32_t binary_backward_kernel(Context* ctx, const balora_binary_backward& o) {
  // The other output takes the place of an unwanted one in the loop: both are contiguous, of
  // one shape.
  const View* any = o.da ? o.da : o.db;
  if (!any || view_numel(*any) == 0) return 0;
  const Loop<5> loop = plan_loop<5>({o.dy, o.a, o.b, o.da ? o.da : any, o.db ? o.db : any});
  dispatch_accumulator(any->dtype, [&]<typename A>() {
    launch(ctx, "binary_backward", elements(loop.count), gradient_elements<A>, operand(o.dy),
           operand(o.a), operand(o.b), operand(o.da), operand(o.db), loop, o.op);
  });
  return 0;
}

}  // namespace balora::cuda
