// Optimizers' updates of flat buffers, in place and in one pass: AdamW and SGD steps, scaling by
// a coefficient that stays on the device, adding a multiple, and the gradients' norm in f64
// (kernels/shared/optimizer.h has the formulas). A thread takes eight elements of every
// buffer: AdamW moves 28 bytes of f32 an element for some 20 instructions and is bound by memory.
// AdamW and the norm take all tensors of an optimiser, 64 a launch: the 420 adapter matrices of
// SmolLM2 are 7 launches instead of 420, each of which would cost more than its 0.1 us of memory
// traffic. Norms are summed in f64 in two passes whose order depends on the sizes alone.
#include <cmath>

#include "elementwise/elementwise.cuh"
#include "kernels/shared/op_codes.h"
#include "kernels/shared/optimizer.h"

namespace balora::cuda {
namespace {

template <typename T>
__device__ T scale_of(const double* coefficient) {
  return coefficient ? static_cast<T>(*coefficient) : T(1);
}

// ---- Tables of tensors --------------------------------------------------------------------------

constexpr int kTable = 64;  // tensors of a launch: their table is an argument of the kernel
constexpr int kTableThreads = 256;
constexpr int64_t kChunk = 2 * kTableThreads * kGroup;  // elements that one block updates

// Which blocks belong to which tensor: those of tensor t begin at first[t].
struct Share {
  int32_t first[kTable + 1];
  int32_t count;

  void add(int64_t blocks) {
    first[count + 1] = narrowed(first[count] + blocks, "a number of blocks of");
    ++count;
  }
  Grid grid() const { return {dim3(static_cast<unsigned>(first[count])), dim3(kTableThreads)}; }
  // The tensor of a block; all threads take the same way.
  __device__ int tensor(int block) const {
    int low = 0, high = count;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (first[middle] <= block ? low : high) = middle;
    }
    return low;
  }
};

struct AdamTable {
  Share share;
  const void* grad[kTable];
  void* param[kTable];
  void* m[kTable];
  void* v[kTable];
  const double* rate[kTable];
  double weight_decay[kTable];
  int64_t size[kTable];
  uint64_t aligned;  // a bit each
};
static_assert(sizeof(AdamTable) <= 3968, "4 KiB hold a kernel's arguments");

template <typename T>
__device__ Operand element_of(void* data, int32_t aligned) {
  return {data, kDtypeOfAcc<T>, aligned};
}

template <typename T>
__global__ void adamw_tensors(const __grid_constant__ AdamTable table, const double* coefficient,
                              AdamwFactors<T> k) {
  const int block = static_cast<int>(blockIdx.x), t = table.share.tensor(block);
  const int32_t aligned = table.aligned >> t & 1;
  const Operand grad = element_of<T>(const_cast<void*>(table.grad[t]), aligned),
                param = element_of<T>(table.param[t], aligned),
                m = element_of<T>(table.m[t], aligned), v = element_of<T>(table.v[t], aligned);
  const double* rate = table.rate[t];
  k.scale = scale_of<T>(coefficient);
  k.decay = adamw_decay<T>(rate, table.weight_decay[t]);
  k.step = static_cast<T>(rate[BALORA_RATE_STEP]);
  k.root = static_cast<T>(rate[BALORA_RATE_ROOT]);
  const int64_t n = table.size[t], begin = (block - table.share.first[t]) * kChunk;
  const int64_t end = n - begin < kChunk ? n : begin + kChunk;
  for (int64_t at = begin + threadIdx.x * kGroup; at < end; at += kTableThreads * kGroup) {
    const int count = group_count(end, at);
    T g[kGroup], p[kGroup], first[kGroup], second[kGroup];
    read_group(grad, at, count, g);
    read_group(param, at, count, p);
    read_group(m, at, count, first);
    read_group(v, at, count, second);
    BALORA_UNROLL
    for (int j = 0; j < kGroup; ++j) adamw_update(k, g[j], p[j], first[j], second[j]);
    write_group(m, at, count, first);
    write_group(v, at, count, second);
    write_group(param, at, count, p);
  }
}

template <typename T>
__global__ void sgd_groups(Operand grad, const double* coefficient, Operand param, Operand buffer,
                           int64_t n, SgdFactors<T> k) {
  const T scale = scale_of<T>(coefficient);
  for (int64_t at = thread_index() * kGroup; at < n; at += thread_count() * kGroup) {
    const int count = group_count(n, at);
    T g[kGroup], p[kGroup], moment[kGroup];
    read_group(grad, at, count, g);
    read_group(param, at, count, p);
    BALORA_UNROLL
    for (int j = 0; j < kGroup; ++j) moment[j] = g[j] = sgd_gradient(k, g[j], scale, p[j]);
    if (buffer.data) {
      if (!k.first) {  // in the first step the buffer holds nothing yet
        read_group(buffer, at, count, moment);
        BALORA_UNROLL
        for (int j = 0; j < kGroup; ++j) moment[j] = sgd_moment(k, g[j], moment[j]);
      }
      write_group(buffer, at, count, moment);
    }
    BALORA_UNROLL
    for (int j = 0; j < kGroup; ++j) {
      p[j] -= k.lr * (buffer.data ? sgd_direction(k, g[j], moment[j]) : g[j]);
    }
    write_group(param, at, count, p);
  }
}

// destination = read * factor, or in place.
template <typename A>
__global__ void scale_groups(Operand x, const double* factor, Operand y, int64_t n) {
  const A by = scale_of<A>(factor);
  for (int64_t at = thread_index() * kGroup; at < n; at += thread_count() * kGroup) {
    const int count = group_count(n, at);
    A value[kGroup];
    read_group(x, at, count, value);
    BALORA_UNROLL
    for (int j = 0; j < kGroup; ++j) value[j] *= by;
    write_group(y, at, count, value);
  }
}

template <typename A>
__global__ void add_scaled_groups(Operand source, Operand destination, int64_t n, A alpha) {
  for (int64_t at = thread_index() * kGroup; at < n; at += thread_count() * kGroup) {
    const int count = group_count(n, at);
    A more[kGroup], value[kGroup];
    read_group(source, at, count, more);
    read_group(destination, at, count, value);
    BALORA_UNROLL
    for (int j = 0; j < kGroup; ++j) value[j] += alpha * more[j];
    write_group(destination, at, count, value);
  }
}

// ---- Norms --------------------------------------------------------------------------------------

constexpr int64_t kNormChunk =
    4 * kTableThreads * kGroup;        // elements that one block sums, at least
constexpr int64_t kNormChunks = 2048;  // about, but one a tensor: the second pass is one block's

struct NormTable {
  Share share;
  Operand x[kTable];
  int64_t size[kTable];
  int64_t chunk;
};
static_assert(sizeof(NormTable) <= 3968, "4 KiB hold a kernel's arguments");

__device__ double join(int32_t kind, double a, double b) {
  return kind == BALORA_NORM_INF ? Max()(a, b) : a + b;
}
__device__ double join_block(int32_t kind, double value, double* scratch) {
  if (kind == BALORA_NORM_INF) return block_reduce(value, 0.0, scratch, Max());
  return block_reduce(value, 0.0, scratch);
}

__global__ void norm_chunks(const __grid_constant__ NormTable table, int32_t kind,
                            double* partial) {
  BALORA_SHARED(double, scratch, kWarp + 1);
  const int block = static_cast<int>(blockIdx.x), t = table.share.tensor(block);
  const Operand x = table.x[t];
  const int64_t n = table.size[t], begin = (block - table.share.first[t]) * table.chunk;
  const int64_t end = n - begin < table.chunk ? n : begin + table.chunk;
  double total = 0;
  for (int64_t at = begin + threadIdx.x * kGroup; at < end; at += kTableThreads * kGroup) {
    double value[kGroup];
    read_group(x, at, group_count(end, at), value);
    BALORA_UNROLL
    for (int j = 0; j < kGroup; ++j) {
      total = join(kind, total, kind == BALORA_NORM_2 ? value[j] * value[j] : std::abs(value[j]));
    }
  }
  total = join_block(kind, total, scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

__global__ void norm_total(const double* partial, int64_t chunks, int32_t kind, double* sum) {
  BALORA_SHARED(double, scratch, kWarp + 1);
  double total = 0;
  for (int64_t i = threadIdx.x; i < chunks; i += blockDim.x) total = join(kind, total, partial[i]);
  total = join_block(kind, total, scratch);
  if (threadIdx.x == 0) *sum = join(kind, *sum, total);
}

}  // namespace

int32_t adamw_step_kernel(Context* ctx, const balora_adamw_step& o) {
  for (int32_t i = 0; i < o.tensors->count; ++i) {
    dispatch_optimizer_state(o.tensors->at[i].param->dtype, [&]<typename T>() {});
  }
  for (const int32_t dtype : {BALORA_F32, BALORA_F64}) {
    AdamTable table{};
    const auto start = [&] {
      if (table.share.count == 0) return;
      const auto of = [&]<typename T>() {
        // The kernel finds the rest on the device.
        const AdamwFactors<T> k{.keep1 = static_cast<T>(1 - o.beta1),
                                .keep2 = static_cast<T>(1 - o.beta2),
                                .eps = static_cast<T>(o.eps)};
        launch(ctx, "adamw_step", table.share.grid(), adamw_tensors<T>, table,
               data_of<double>(o.coefficient), k);
      };
      dispatch_optimizer_state(dtype, of);
      table = {};
    };
    for (int32_t i = 0; i < o.tensors->count; ++i) {
      const AdamwOperands& tensor = o.tensors->at[i];
      const int64_t n = view_numel(*tensor.param);
      if (tensor.param->dtype != dtype || n == 0) continue;
      const int32_t t = table.share.count;
      table.grad[t] = tensor.grad->data;
      table.param[t] = tensor.param->data;
      table.m[t] = tensor.m->data;
      table.v[t] = tensor.v->data;
      table.rate[t] = data_of<double>(tensor.rate);
      table.weight_decay[t] = tensor.weight_decay;
      table.size[t] = n;
      bool aligned = true;
      for (const View* view : {tensor.grad, tensor.param, tensor.m, tensor.v}) {
        aligned = aligned && aligned16(data_of<char>(view));
      }
      table.aligned |= uint64_t{aligned} << t;
      table.share.add(ceil_div(n, kChunk));
      if (table.share.count == kTable) start();
    }
    start();
  }
  return 0;
}

int32_t sgd_step_kernel(Context* ctx, const balora_sgd_step& o) {
  const int64_t n = view_numel(*o.param);
  dispatch_optimizer_state(o.param->dtype, [&]<typename T>() {
    if (n == 0) return;
    launch(ctx, "sgd_step", groups(n), sgd_groups<T>, operand(o.grad),
           data_of<double>(o.coefficient), operand(o.param), operand(o.buffer), n,
           sgd_factors<T>(o));
  });
  return 0;
}

int32_t norm_accumulate_kernel(Context* ctx, const balora_norm_accumulate& o) {
  int64_t elements = 0;
  for (int32_t i = 0; i < o.tensors->count; ++i) elements += view_numel(*o.tensors->at[i]);
  if (elements == 0) return 0;
  const int64_t share = ceil_div(ceil_div(elements, kNormChunks), kGroup) * kGroup;
  const int64_t chunk = std::max(share, kNormChunk);
  int64_t chunks = 0;
  for (int32_t i = 0; i < o.tensors->count; ++i)
    chunks += ceil_div(view_numel(*o.tensors->at[i]), chunk);
  auto* partial = workspace<double>(ctx, chunks);
  double* next = partial;
  NormTable table{};
  const auto start = [&] {
    if (table.share.count == 0) return;
    launch(ctx, "norm_accumulate", table.share.grid(), norm_chunks, table, o.kind, next);
    next += table.share.first[table.share.count];
    table = {};
  };
  for (int32_t i = 0; i < o.tensors->count; ++i) {
    const View& x = *o.tensors->at[i];
    const int64_t n = view_numel(x);
    if (n == 0) continue;
    const int32_t t = table.share.count;
    table.chunk = chunk;
    table.x[t] = operand(&x);
    table.size[t] = n;
    table.share.add(ceil_div(n, chunk));
    if (table.share.count == kTable) start();
  }
  start();
  launch(ctx, "norm_accumulate", Grid{dim3(1), dim3(kTableThreads)}, norm_total, partial, chunks,
         o.kind, data_of<double>(o.total));
  return 0;
}

int32_t scale_kernel(Context* ctx, const balora_scale& o) {
  const int64_t n = view_numel(*o.x);
  if (n == 0) return 0;
  dispatch_accumulator(o.x->dtype, [&]<typename A>() {
    launch(ctx, "scale", groups(n), scale_groups<A>, operand(o.x), data_of<double>(o.coefficient),
           operand(o.x), n);
  });
  return 0;
}

int32_t scale_by_kernel(Context* ctx, const balora_scale_by& o) {
  const int64_t n = view_numel(*o.x);
  if (n == 0) return 0;
  dispatch_accumulator(o.x->dtype, [&]<typename A>() {
    launch(ctx, "scale_by", groups(n), scale_groups<A>, operand(o.x), data_of<double>(o.factor),
           operand(o.y), n);
  });
  return 0;
}

int32_t add_scaled_kernel(Context* ctx, const balora_add_scaled& o) {
  const int64_t n = view_numel(*o.destination);
  if (n == 0) return 0;
  dispatch_accumulator(o.destination->dtype, [&]<typename A>() {
    launch(ctx, "add_scaled", groups(n), add_scaled_groups<A>, operand(o.source),
           operand(o.destination), n, o.alpha);
  });
  return 0;
}

}  // namespace balora::cuda
