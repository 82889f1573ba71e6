// gemm() on cuBLAS. Row-major C = A B is column-major C^T = B^T A^T, so the operands change places
// and a matrix that is stored as the product reads it needs no transposition. The workspace is the
// plug-in's own and sums are never kept narrower than f32, so a product of one shape gives the same
// bits every time; f32 products use TF32 only where the context allows it.
#include "runtime/blas.cuh"

#include <limits>

#include "runtime/blas_library.cuh"

namespace balora::cuda {

using namespace blas_api;

struct Blas {
  const Library* library = nullptr;
  cublasHandle_t handle = nullptr;
  void* workspace = nullptr;
};

namespace {

constexpr int64_t kMaxBatch = 32768;               // above 65535 a grid has no room for it
constexpr int64_t kWideBytes = int64_t{64} << 20;  // of the widened part of a mixed product

void check(const Library& library, cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  const std::string text = std::string(what) + ": cuBLAS says " +
                           library.cublasGetStatusString(status) + " (" +
                           std::to_string(static_cast<int>(status)) + ")";
  if (status == CUBLAS_STATUS_ALLOC_FAILED) throw OutOfMemory(text);
  throw std::runtime_error(text);
}

cudaDataType_t type_of(int32_t dtype) {
  switch (dtype) {
    case BALORA_F32:
      return CUDA_R_32F;
    case BALORA_BF16:
      return CUDA_R_16BF;
    case BALORA_F16:
      return CUDA_R_16F;
    case BALORA_F64:
      return CUDA_R_64F;
    default:
      throw std::runtime_error("gemm: dtype number " + std::to_string(dtype) +
                               " is not a float type");
  }
}

cublasComputeType_t compute_of(const Context* ctx, int32_t dtype) {
  if (dtype == BALORA_F64) return CUBLAS_COMPUTE_64F;
  return dtype == BALORA_F32 && ctx->allow_tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
}

int narrow(int64_t value) {
  if (value > std::numeric_limits<int>::max()) {
    throw std::runtime_error("gemm: an extent of " + std::to_string(value) +
                             " is more than cuBLAS takes");
  }
  return static_cast<int>(value);
}

// An operand as cuBLAS sees it: column-major, hence transposed.
struct Side {
  cublasOperation_t op;
  int stride;
};
Side side_of(const GemmOperand& x, int64_t rows, int64_t cols) {
  const int64_t width = x.transposed ? rows : cols;
  return {x.transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
          narrow(std::max({x.stride, width, int64_t{1}}))};
}

template <typename C>
__global__ void scale_elements(C* c, GemmShape shape, int64_t stride, int64_t batch_stride,
                               Acc<C> beta) {
  const int64_t count = shape.m * shape.n * shape.batch;
  for (int64_t at = thread_index(); at < count; at += thread_count()) {
    C& element =
        c[at / (shape.m * shape.n) * batch_stride + at / shape.n % shape.m * stride + at % shape.n];
    element = store<C>(beta == 0 ? Acc<C>(0) : beta * load(element));
  }
}

// The product of an empty inner extent.
void scale_result(Context* ctx, const GemmShape& shape, double beta, const GemmResult& c) {
  dispatch_float(c.dtype, [&]<typename C>() {
    launch(ctx, "gemm", elements(shape.m * shape.n * shape.batch), scale_elements<C>,
           static_cast<C*>(c.data), shape, c.stride, c.batch_stride, beta);
  });
}

void multiply(Context* ctx, const GemmShape& shape, double alpha, const GemmOperand& a,
              const GemmOperand& b, double beta, const GemmResult& c) {
  const Blas& blas = *state_of(ctx).blas;
  const Library& library = *blas.library;
  const Side left = side_of(a, shape.m, shape.k), right = side_of(b, shape.k, shape.n);
  const int m = narrow(shape.m), n = narrow(shape.n), k = narrow(shape.k);
  const int stride = narrow(std::max(c.stride, shape.n));
  const cublasComputeType_t compute = compute_of(ctx, a.dtype);
  const float factors32[2] = {static_cast<float>(alpha), static_cast<float>(beta)};
  const double factors64[2] = {alpha, beta};
  const bool wide = compute == CUBLAS_COMPUTE_64F;
  const void* const by_alpha = wide ? static_cast<const void*>(factors64) : factors32;
  const void* const by_beta = wide ? static_cast<const void*>(factors64 + 1) : factors32 + 1;
  if (shape.batch == 1) {
    check(library,
          library.cublasGemmEx(blas.handle, right.op, left.op, n, m, k, by_alpha, b.data,
                               type_of(b.dtype), right.stride, a.data, type_of(a.dtype),
                               left.stride, by_beta, c.data, type_of(c.dtype), stride, compute,
                               CUBLAS_GEMM_DEFAULT),
          "gemm");
  } else {
    check(library,
          library.cublasGemmStridedBatchedEx(
              blas.handle, right.op, left.op, n, m, k, by_alpha, b.data, type_of(b.dtype),
              right.stride, b.batch_stride, a.data, type_of(a.dtype), left.stride, a.batch_stride,
              by_beta, c.data, type_of(c.dtype), stride, c.batch_stride, narrow(shape.batch),
              compute, CUBLAS_GEMM_DEFAULT),
          "gemm");
  }
  state_of(ctx).launched = "gemm";
  if (ctx->debug) cuda::check(cudaStreamSynchronize(stream_of(ctx)), "gemm");
}

// `count` steps of the inner extent from `first` on.
GemmOperand inner_part(const GemmOperand& x, int64_t first, bool inner_is_row) {
  GemmOperand part = x;
  part.data = offset_by(x.data, inner_is_row != x.transposed ? first * x.stride : first, x.dtype);
  return part;
}

// Kept for the row's later products, as work on the stream runs in order: the engine takes scratch
// back only when the row returns, and a row may multiply tile after tile.
float* widening_scratch(Context* ctx, int64_t count) {
  DeviceState& state = state_of(ctx);
  if (count > state.widened_count) {
    state.widened = workspace<float>(ctx, count);
    state.widened_count = count;
  }
  return state.widened;
}

// Widens the narrow operand in chunks of the inner extent, whose products add up in c.
void multiply_mixed(Context* ctx, const GemmShape& shape, double alpha, const GemmOperand& a,
                    const GemmOperand& b, double beta, const GemmResult& c) {
  const bool left = a.dtype != BALORA_F32;  // is the narrow one
  const GemmOperand& narrow_one = left ? a : b;
  if ((left ? b : a).dtype != BALORA_F32 || c.dtype != BALORA_F32 || shape.batch != 1 ||
      narrow_one.dtype == BALORA_F64) {
    throw std::runtime_error("gemm: operands of dtype numbers " + std::to_string(a.dtype) +
                             " and " + std::to_string(b.dtype) + " do not go together");
  }
  const int64_t other = left ? shape.m : shape.n;
  const int64_t fitting = std::max<int64_t>(kWideBytes / 4 / other / 64, 1) * 64;
  const int64_t step = std::min(fitting, shape.k);
  float* wide = widening_scratch(ctx, step * other);
  for (int64_t first = 0; first < shape.k; first += step) {
    const int64_t count = std::min(step, shape.k - first);
    GemmOperand parts[2] = {inner_part(a, first, false), inner_part(b, first, true)};
    GemmOperand& part = parts[left ? 0 : 1];
    // Stored with the inner extent as rows, or as columns.
    const bool by_rows = left == part.transposed;
    const int64_t rows = by_rows ? count : other, cols = by_rows ? other : count;
    convert_matrix(ctx, rows, cols, {part.data, part.dtype, part.stride}, {wide, BALORA_F32, cols});
    part.data = wide, part.dtype = BALORA_F32, part.stride = cols;
    multiply(ctx, {shape.m, shape.n, count}, alpha, parts[0], parts[1], first == 0 ? beta : 1, c);
  }
}

template <typename From, typename To>
__global__ void convert_elements(const From* from, int64_t from_stride, To* to, int64_t to_stride,
                                 int64_t rows, int64_t cols) {
  for (int64_t at = thread_index(); at < rows * cols; at += thread_count()) {
    const int64_t row = at / cols, column = at % cols;
    to[row * to_stride + column] =
        store<To>(static_cast<Acc<To>>(load(from[row * from_stride + column])));
  }
}

// Whole packs of a contiguous matrix.
template <typename From, typename To>
__global__ void convert_packs(const Pack<From, 8>* from, Pack<To, 8>* to, int64_t count) {
  for (int64_t at = thread_index(); at < count; at += thread_count()) {
    const Pack<From, 8> in = from[at];
    Pack<To, 8> out;
    for (int i = 0; i < 8; ++i) out.at[i] = store<To>(static_cast<Acc<To>>(load(in.at[i])));
    to[at] = out;
  }
}

}  // namespace

void convert_matrix(Context* ctx, int64_t rows, int64_t cols, const SourceRows& from,
                    const ResultRows& to) {
  const int64_t count = rows * cols;
  if (count == 0) return;
  const auto address =
      reinterpret_cast<uintptr_t>(from.data) | reinterpret_cast<uintptr_t>(to.data);
  const bool dense = (from.stride == cols && to.stride == cols) || rows == 1;
  dispatch_float(from.dtype, [&]<typename From>() {
    dispatch_float(to.dtype, [&]<typename To>() {
      if constexpr (sizeof(From) <= 4 && sizeof(To) <= 4) {
        if (dense && count % 8 == 0 && address % 32 == 0) {
          launch(ctx, "convert_matrix", elements(count / 8), convert_packs<From, To>,
                 static_cast<const Pack<From, 8>*>(from.data), static_cast<Pack<To, 8>*>(to.data),
                 count / 8);
          return;
        }
      }
      launch(ctx, "convert_matrix", elements(count), convert_elements<From, To>,
             static_cast<const From*>(from.data), from.stride, static_cast<To*>(to.data), to.stride,
             rows, cols);
    });
  });
}

Blas* open_blas(DeviceState& state) {
  const Library& library = blas_library();
  Blas* blas = new Blas{&library};
  try {
    check(library, library.cublasCreate_v2(&blas->handle), "cublasCreate");
    check(library, library.cublasSetStream_v2(blas->handle, state.stream), "cublasSetStream");
    const auto mode = static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH |
                                                CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
    check(library, library.cublasSetMathMode(blas->handle, mode), "cublasSetMathMode");
    // A workspace as large as cuBLAS itself takes; a fixed place lets graphs be captured.
    const size_t bytes = size_t{state.compute_capability >= 90 ? 32u : 8u} << 20;
    cuda::check(cudaMalloc(&blas->workspace, bytes), "the workspace of cuBLAS");
    check(library, library.cublasSetWorkspace_v2(blas->handle, blas->workspace, bytes),
          "cublasSetWorkspace");
  } catch (...) {
    close_blas(blas);
    throw;
  }
  return blas;
}

void close_blas(Blas* blas) {
  if (blas->handle) blas->library->cublasDestroy_v2(blas->handle);
  if (blas->workspace) cudaFree(blas->workspace);
  delete blas;
}

void gemm(Context* ctx, const GemmShape& shape, double alpha, const GemmOperand& a,
          const GemmOperand& b, double beta, const GemmResult& c) {
  if (shape.m * shape.n * shape.batch == 0) return;
  if (shape.k == 0) return scale_result(ctx, shape, beta, c);
  if (a.dtype != b.dtype) return multiply_mixed(ctx, shape, alpha, a, b, beta, c);
  for (int64_t first = 0; first < shape.batch; first += kMaxBatch) {
    GemmShape part = shape;
    part.batch = std::min(kMaxBatch, shape.batch - first);
    GemmOperand left = a, right = b;
    GemmResult out = c;
    left.data = offset_by(a.data, first * a.batch_stride, a.dtype);
    right.data = offset_by(b.data, first * b.batch_stride, b.dtype);
    out.data = offset_by(c.data, first * c.batch_stride, c.dtype);
    multiply(ctx, part, alpha, left, right, beta, out);
  }
}

}  // namespace balora::cuda
