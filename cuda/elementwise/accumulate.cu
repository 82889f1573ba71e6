// Sums of gradients and the finiteness check. A thread takes groups of eight elements, each operand
// moves once: accumulate of a bf16 gradient into an f32 sum is 10 bytes and one multiply-add an
// element, check_finite reads its operand alone.
#include "elementwise/elementwise.cuh"
#include "runtime/state.cuh"

namespace balora::cuda {
namespace {

template <typename A>
__global__ void accumulate_groups(Operand source, Operand destination, int64_t n, A beta) {
  for (int64_t at = thread_index() * kGroup; at < n; at += thread_count() * kGroup) {
    const int count = group_count(n, at);
    A sum[kGroup];
    read_group(source, at, count, sum);
    if (beta != A(0)) {
      A old[kGroup];
      read_group(destination, at, count, old);
      BALORA_UNROLL
      for (int j = 0; j < kGroup; ++j) sum[j] += beta * old[j];
    }
    write_group(destination, at, count, sum);
  }
}

template <typename A>
__global__ void find_not_finite(Operand x, int64_t n, int32_t* found) {
  bool bad = false;
  for (int64_t at = thread_index() * kGroup; at < n; at += thread_count() * kGroup) {
    A value[kGroup];
    read_group(x, at, group_count(n, at), value);
    // NaN and infinity are the values whose difference is no zero.
    BALORA_UNROLL
    for (int j = 0; j < kGroup; ++j) bad |= !(value[j] - value[j] == A(0));
  }
  if (bad) atomicOr(found, 1);
}

}  // namespace

int32_t accumulate_kernel(Context* ctx, const balora_accumulate& o) {
  const int64_t n = view_numel(*o.destination);
  if (n == 0) return 0;
  dispatch_accumulator(o.destination->dtype, [&]<typename A>() {
    launch(ctx, "accumulate", groups(n), accumulate_groups<A>, operand(o.source),
           operand(o.destination), n, o.beta);
  });
  return 0;
}

// The answer is a host value, so the row waits for the stream.
int32_t check_finite_kernel(Context* ctx, const balora_check_finite& o) {
  if (!view_contiguous(*o.x)) throw std::runtime_error("check_finite: the view must be contiguous");
  *o.finite = 1;
  const int64_t n = view_numel(*o.x);
  if (n == 0) return 0;
  auto* found = workspace<int32_t>(ctx, 1);
  check_stream(ctx, cudaMemsetAsync(found, 0, sizeof *found, stream_of(ctx)), "check_finite");
  dispatch_accumulator(o.x->dtype, [&]<typename A>() {
    launch(ctx, "check_finite", groups(n), find_not_finite<A>, operand(o.x), n, found);
  });
  int32_t bad = 0;
  download(ctx, &bad, found, sizeof bad);
  *o.finite = bad ? 0 : 1;
  return 0;
}

}  // namespace balora::cuda
