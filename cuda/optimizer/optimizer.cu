// What an optimiser does to flat buffers, in place and in one pass: AdamW and SGD steps, scaling by
// a coefficient that stays on the device, adding a multiple, and the gradients' norm in f64
// (kernels/cpu/optimizer/optimizer.cc has the formulas). A thread takes eight elements of every
// buffer: AdamW moves 28 bytes of f32 an element for some 20 instructions and is bound by memory.
// AdamW and the norm take all tensors of an optimiser, 64 a launch: the 420 adapter matrices of
// SmolLM2 are 7 launches instead of 420, each of which would cost more than its 0.1 us of memory
// traffic. Norms are summed in f64 in two passes whose order depends on the sizes alone.
#include <cmath>

#include "elementwise/elementwise.cuh"
#include "kernels/op_codes.h"

namespace balora::cuda {
namespace {

template <typename T>
struct Adam {
  T keep1, keep2, eps;  // 1-b1, 1-b2
};

template <typename T>
__device__ T scale_of(const double* coefficient) {
  return coefficient ? static_cast<T>(*coefficient) : T(1);
}

// ---- Tables of tensors --------------------------------------------------------------------------

constexpr int kTable = 64;  // tensors of a launch: their table is an argument of the kernel
constexpr int kTableThreads = 256;
constexpr int64_t kPiece = 2 * kTableThreads * kGroup;  // elements that one block updates

// Which blocks belong to which tensor: those of tensor t begin at first[t].
struct Share {
  int32_t first[kTable + 1];
  int32_t count;

  void add(int64_t blocks) {
    first[count + 1] = static_cast<int32_t>(first[count] + blocks);
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
  return {data, std::is_same_v<T, double> ? BALORA_F64 : BALORA_F32, aligned};
}

template <typename T>
__global__ void adamw_tensors(const __grid_constant__ AdamTable table, const double* coefficient,
                              Adam<T> k) {
  const int block = static_cast<int>(blockIdx.x), t = table.share.tensor(block);
  const int32_t aligned = table.aligned >> t & 1;
  const Operand grad = element_of<T>(const_cast<void*>(table.grad[t]), aligned),
                param = element_of<T>(table.param[t], aligned),
                m = element_of<T>(table.m[t], aligned), v = element_of<T>(table.v[t], aligned);
  const double* rate = table.rate[t];
  const T scale = scale_of<T>(coefficient);
  // 1-lr*wd, lr/c1, 1/sqrt(c2)
  const T decay = static_cast<T>(1 - rate[0] * table.weight_decay[t]),
          step = static_cast<T>(rate[1]), root = static_cast<T>(rate[2]);
  const int64_t n = table.size[t], begin = (block - table.share.first[t]) * kPiece;
  const int64_t end = n - begin < kPiece ? n : begin + kPiece;
  for (int64_t at = begin + threadIdx.x * kGroup; at < end; at += kTableThreads * kGroup) {
    const int count = group_count(end, at);
    T g[kGroup], p[kGroup], first[kGroup], second[kGroup];
    read_group(grad, at, count, g);
    read_group(param, at, count, p);
    read_group(m, at, count, first);
    read_group(v, at, count, second);
    BALORA_UNROLL
    for (int j = 0; j < kGroup; ++j) {
      const T scaled = g[j] * scale;
      first[j] += k.keep1 * (scaled - first[j]);
      second[j] += k.keep2 * (scaled * scaled - second[j]);
      p[j] = p[j] * decay - step * first[j] / (std::sqrt(second[j]) * root + k.eps);
    }
    write_group(m, at, count, first);
    write_group(v, at, count, second);
    write_group(param, at, count, p);
  }
}

template <typename T>
struct Sgd {
  T lr, momentum, fresh, decay;  // fresh: 1-dampening
  int32_t nesterov, first;
};

template <typename T>
__global__ void sgd_groups(Operand grad, const double* coefficient, Operand param, Operand buffer,
                           int64_t n, Sgd<T> k) {
  const T scale = scale_of<T>(coefficient);
  for (int64_t at = thread_index() * kGroup; at < n; at += thread_count() * kGroup) {
    const int count = group_count(n, at);
    T g[kGroup], p[kGroup], moment[kGroup];
    read_group(grad, at, count, g);
    read_group(param, at, count, p);
    BALORA_UNROLL
    for (int j = 0; j < kGroup; ++j) moment[j] = g[j] = g[j] * scale + k.decay * p[j];
    if (buffer.data) {
      if (!k.first) {  // in the first step the buffer holds nothing yet
        read_group(buffer, at, count, moment);
        BALORA_UNROLL
        for (int j = 0; j < kGroup; ++j) moment[j] = k.momentum * moment[j] + k.fresh * g[j];
      }
      write_group(buffer, at, count, moment);
    }
    BALORA_UNROLL
    for (int j = 0; j < kGroup; ++j) {
      p[j] -= k.lr * (k.nesterov && buffer.data ? g[j] + k.momentum * moment[j] : moment[j]);
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

constexpr int64_t kNormPiece =
    4 * kTableThreads * kGroup;        // elements that one block sums, at least
constexpr int64_t kNormPieces = 2048;  // about, but one a tensor: the second pass is one block's

struct NormTable {
  Share share;
  Operand x[kTable];
  int64_t size[kTable];
  int64_t piece;
};
static_assert(sizeof(NormTable) <= 3968, "4 KiB hold a kernel's arguments");

__device__ double join(int32_t kind, double a, double b) {
  return kind == BALORA_NORM_INF ? Max()(a, b) : a + b;
}
__device__ double join_block(int32_t kind, double value, double* scratch) {
  if (kind == BALORA_NORM_INF) return block_reduce(value, 0.0, scratch, Max());
  return block_reduce(value, 0.0, scratch);
}

__global__ void norm_pieces(const __grid_constant__ NormTable table, int32_t kind,
                            double* partial) {
  BALORA_SHARED(double, scratch, kWarp + 1);
  const int block = static_cast<int>(blockIdx.x), t = table.share.tensor(block);
  const Operand x = table.x[t];
  const int64_t n = table.size[t], begin = (block - table.share.first[t]) * table.piece;
  const int64_t end = n - begin < table.piece ? n : begin + table.piece;
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

__global__ void norm_total(const double* partial, int64_t pieces, int32_t kind, double* sum) {
  BALORA_SHARED(double, scratch, kWarp + 1);
  double total = 0;
  for (int64_t i = threadIdx.x; i < pieces; i += blockDim.x) total = join(kind, total, partial[i]);
  total = join_block(kind, total, scratch);
  if (threadIdx.x == 0) *sum = join(kind, *sum, total);
}

// The types that optimiser state may have.
void check_state(const View* param) {
  if (param->dtype == BALORA_F32 || param->dtype == BALORA_F64) return;
  throw std::runtime_error("optimiser state must be f32 or f64");
}
template <typename Body>
void dispatch_state(const View* param, Body&& body) {
  check_state(param);
  if (param->dtype == BALORA_F64) return body.template operator()<double>();
  return body.template operator()<float>();
}

}  // namespace

int32_t adamw_step_kernel(Context* ctx, const balora_adamw_step& o) {
  for (int32_t i = 0; i < o.tensors->count; ++i) check_state(o.tensors->at[i].param);
  for (const int32_t dtype : {BALORA_F32, BALORA_F64}) {
    AdamTable table{};
    const auto start = [&] {
      if (table.share.count == 0) return;
      const auto of = [&]<typename T>() {
        const Adam<T> k{static_cast<T>(1 - o.beta1), static_cast<T>(1 - o.beta2),
                        static_cast<T>(o.eps)};
        launch(ctx, "adamw_step", table.share.grid(), adamw_tensors<T>, table,
               data_of<double>(o.coefficient), k);
      };
      dtype == BALORA_F64 ? of.template operator()<double>() : of.template operator()<float>();
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
      table.share.add(ceil_div(n, kPiece));
      if (table.share.count == kTable) start();
    }
    start();
  }
  return 0;
}

int32_t sgd_step_kernel(Context* ctx, const balora_sgd_step& o) {
  const int64_t n = view_numel(*o.param);
  dispatch_state(o.param, [&]<typename T>() {
    const Sgd<T> k{static_cast<T>(o.lr),
                   static_cast<T>(o.momentum),
                   static_cast<T>(1 - o.dampening),
                   static_cast<T>(o.weight_decay),
                   o.nesterov,
                   o.first};
    if (n == 0) return;
    launch(ctx, "sgd_step", groups(n), sgd_groups<T>, operand(o.grad),
           data_of<double>(o.coefficient), operand(o.param), operand(o.buffer), n, k);
  });
  return 0;
}

int32_t norm_accumulate_kernel(Context* ctx, const balora_norm_accumulate& o) {
  int64_t elements = 0;
  for (int32_t i = 0; i < o.tensors->count; ++i) elements += view_numel(*o.tensors->at[i]);
  if (elements == 0) return 0;
  const int64_t share = ceil_div(ceil_div(elements, kNormPieces), kGroup) * kGroup;
  const int64_t piece = std::max(share, kNormPiece);
  int64_t pieces = 0;
  for (int32_t i = 0; i < o.tensors->count; ++i)
    pieces += ceil_div(view_numel(*o.tensors->at[i]), piece);
  auto* partial = workspace<double>(ctx, pieces);
  double* next = partial;
  NormTable table{};
  const auto start = [&] {
    if (table.share.count == 0) return;
    launch(ctx, "norm_accumulate", table.share.grid(), norm_pieces, table, o.kind, next);
    next += table.share.first[table.share.count];
    table = {};
  };
  for (int32_t i = 0; i < o.tensors->count; ++i) {
    const View& x = *o.tensors->at[i];
    const int64_t n = view_numel(x);
    if (n == 0) continue;
    const int32_t t = table.share.count;
    table.piece = piece;
    table.x[t] = operand(&x);
    table.size[t] = n;
    table.share.add(ceil_div(n, piece));
    if (table.share.count == kTable) start();
  }
  start();
  launch(ctx, "norm_accumulate", Grid{dim3(1), dim3(kTableThreads)}, norm_total, partial, pieces,
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
