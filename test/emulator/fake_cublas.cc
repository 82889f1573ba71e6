// cuBLAS for the emulated device: the functions of cuda/runtime/blas.def as plain loops on the
// host, in the stream's order. Arguments are checked as the library's documentation asks, and that
// matrices lie in device memory; what is wrong is printed, for a status code says little. Products
// in TF32 round their factors to it. BALORA_EMULATOR_NO_CUBLAS in the environment takes the library
// away; versions that BALORA_EMULATOR_BROKEN_CUBLAS names do not start.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "runtime/blas_api.h"
#include "tensor/dtype.h"

namespace balora::cuda::blas_api {

struct cublasContext {
  cudaStream_t stream = nullptr;
};

namespace {

struct Matrix {
  const void* data;
  cudaDataType_t type;
  cublasOperation_t op;
  int rows, cols, stride;  // of op(matrix); stride of its columns as stored
  long long batch_stride;

  int stored_rows() const { return op == CUBLAS_OP_N ? rows : cols; }
  int stored_cols() const { return op == CUBLAS_OP_N ? cols : rows; }
};

size_t bytes_of(cudaDataType_t type) {
  return type == CUDA_R_64F ? 8 : type == CUDA_R_32F ? 4 : 2;
}

float widen(float x) {
  return x;
}
double widen(double x) {
  return x;
}
float widen(bf16 x) {
  return to_float(x);
}
float widen(f16 x) {
  return to_float(x);
}

// Calls body with a null pointer of the type.
template <typename Body>
void dispatch(cudaDataType_t type, const Body& body) {
  switch (type) {
    case CUDA_R_32F:
      return body(static_cast<float*>(nullptr));
    case CUDA_R_16BF:
      return body(static_cast<bf16*>(nullptr));
    case CUDA_R_16F:
      return body(static_cast<f16*>(nullptr));
    default:
      return body(static_cast<double*>(nullptr));
  }
}

double element(const void* data, cudaDataType_t type, int64_t at) {
  double value = 0;
  dispatch(type, [&]<typename T>(T*) { value = widen(static_cast<const T*>(data)[at]); });
  return value;
}

void set_element(void* data, cudaDataType_t type, int64_t at, double value) {
  switch (type) {
    case CUDA_R_32F:
      static_cast<float*>(data)[at] = static_cast<float>(value);
      break;
    case CUDA_R_16BF:
      static_cast<bf16*>(data)[at] = to_bf16(static_cast<float>(value));
      break;
    case CUDA_R_16F:
      static_cast<f16*>(data)[at] = to_f16(static_cast<float>(value));
      break;
    default:
      static_cast<double*>(data)[at] = value;
  }
}

// To the 10 bits of TF32's mantissa, to nearest even; its exponent is f32's.
float to_tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7f800000u) == 0x7f800000u) return x;  // NaN, infinity
  bits = (bits + 0xfffu + (bits >> 13 & 1)) & ~0x1fffu;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// op(matrix) of one batch, row by row.
template <typename Sum>
std::vector<Sum> dense(const Matrix& m, int batch, bool tf32) {
  std::vector<Sum> out(static_cast<size_t>(m.rows) * m.cols);
  const int64_t down = m.op == CUBLAS_OP_N ? 1 : m.stride,
                across = m.op == CUBLAS_OP_N ? m.stride : 1;
  dispatch(m.type, [&]<typename T>(T*) {
    const T* from = static_cast<const T*>(m.data) + batch * m.batch_stride;
    Sum* to = out.data();
    for (int i = 0; i < m.rows; ++i) {
      for (int j = 0; j < m.cols; ++j) {
        *to = static_cast<Sum>(widen(from[i * down + j * across]));
        if (tf32) *to = to_tf32(static_cast<float>(*to));
        ++to;
      }
    }
  });
  return out;
}

struct Product {
  Matrix a, b, c;
  int batches;
  double alpha, beta;
  bool tf32;
};

template <typename Sum>
void multiply(const Product& p) {
  const size_t n = static_cast<size_t>(p.c.cols);
  std::vector<Sum> sums(n);
  for (int batch = 0; batch < p.batches; ++batch) {
    const std::vector<Sum> a = dense<Sum>(p.a, batch, p.tf32), b = dense<Sum>(p.b, batch, p.tf32);
    for (int i = 0; i < p.c.rows; ++i) {
      std::fill(sums.begin(), sums.end(), Sum(0));
      for (int k = 0; k < p.a.cols; ++k) {
        const Sum left = a[static_cast<size_t>(i) * p.a.cols + k];
        const Sum* right = b.data() + static_cast<size_t>(k) * n;
        for (size_t j = 0; j < n; ++j) sums[j] += left * right[j];
      }
      for (size_t j = 0; j < n; ++j) {
        const int64_t at = batch * p.c.batch_stride + i + static_cast<int64_t>(j) * p.c.stride;
        Sum value = static_cast<Sum>(p.alpha) * sums[j];
        if (p.beta != 0) {
          value += static_cast<Sum>(p.beta) * static_cast<Sum>(element(p.c.data, p.c.type, at));
        }
        set_element(const_cast<void*>(p.c.data), p.c.type, at, value);
      }
    }
  }
}

bool refuse(const char* what) {
  std::fprintf(stderr, "fake cuBLAS: %s\n", what);
  return false;
}

bool valid(const Matrix& m, int batches) {
  if (m.op != CUBLAS_OP_N && m.op != CUBLAS_OP_T) return refuse("an operation that is not N or T");
  if (m.stride < std::max(1, m.stored_rows())) return refuse("a leading dimension is too small");
  if (reinterpret_cast<uintptr_t>(m.data) % bytes_of(m.type) != 0) return refuse("misaligned data");
  if (m.rows == 0 || m.cols == 0) return true;
  const long long elements = (batches - 1) * m.batch_stride +
                             static_cast<long long>(m.stored_cols() - 1) * m.stride +
                             m.stored_rows();
  if (!emulator::is_device_memory(m.data, static_cast<size_t>(elements) * bytes_of(m.type))) {
    return refuse("a matrix does not lie in device memory");
  }
  return true;
}

bool supported(const Product& p, cublasComputeType_t compute) {
  const cudaDataType_t type = p.a.type;
  if (p.b.type != type) return refuse("operands of two types");
  if (compute == CUBLAS_COMPUTE_64F) return type == CUDA_R_64F && p.c.type == CUDA_R_64F;
  if (compute == CUBLAS_COMPUTE_32F_FAST_TF32 && type != CUDA_R_32F)
    return refuse("TF32 of no f32");
  return type != CUDA_R_64F && (p.c.type == type || p.c.type == CUDA_R_32F);
}

cublasStatus_t run(cublasHandle_t handle, const Product& p, cublasComputeType_t compute) {
  if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (p.c.rows < 0 || p.c.cols < 0 || p.a.cols < 0 || p.batches < 0) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (!supported(p, compute)) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (!valid(p.a, p.batches) || !valid(p.b, p.batches) || !valid(p.c, p.batches)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (p.batches > 1 && p.c.batch_stride < static_cast<long long>(p.c.stride) * (p.c.cols - 1) + 1) {
    refuse("the results of a batch overlap");
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  emulator::enqueue(handle->stream, "cublasGemm", [=] {
    compute == CUBLAS_COMPUTE_64F ? multiply<double>(p) : multiply<float>(p);
  });
  return CUBLAS_STATUS_SUCCESS;
}

double factor(const void* value, cublasComputeType_t compute) {
  return compute == CUBLAS_COMPUTE_64F ? *static_cast<const double*>(value)
                                       : *static_cast<const float*>(value);
}

cublasStatus_t cublasCreate_v2(cublasHandle_t* handle) {
  constexpr size_t kOwn = 4 << 20;  // bytes that cuBLAS takes for itself
  size_t free = 0, total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess || free < kOwn)
    return CUBLAS_STATUS_ALLOC_FAILED;
  *handle = new cublasContext();
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t, void* workspace, size_t bytes) {
  const bool fine = emulator::is_device_memory(workspace, bytes) &&
                    reinterpret_cast<uintptr_t>(workspace) % 256 == 0;
  return fine ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}
cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) {
  return CUBLAS_STATUS_SUCCESS;
}
const char* cublasGetStatusString(cublasStatus_t status) {
  switch (static_cast<int>(status)) {
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "the library was not initialized";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "resource allocation failed";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "an invalid value";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "not supported";
    default:
      return "a failure";
  }
}

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t transa,
                                          cublasOperation_t transb, int m, int n, int k,
                                          const void* alpha, const void* A, cudaDataType_t Atype,
                                          int lda, long long strideA, const void* B,
                                          cudaDataType_t Btype, int ldb, long long strideB,
                                          const void* beta, void* C, cudaDataType_t Ctype, int ldc,
                                          long long strideC, int batchCount,
                                          cublasComputeType_t computeType, cublasGemmAlgo_t) {
  const Product product = {{A, Atype, transa, m, k, lda, strideA},
                           {B, Btype, transb, k, n, ldb, strideB},
                           {C, Ctype, CUBLAS_OP_N, m, n, ldc, strideC},
                           batchCount,
                           factor(alpha, computeType),
                           factor(beta, computeType),
                           computeType == CUBLAS_COMPUTE_32F_FAST_TF32};
  return run(handle, product, computeType);
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t transa,
                            cublasOperation_t transb, int m, int n, int k, const void* alpha,
                            const void* A, cudaDataType_t Atype, int lda, const void* B,
                            cudaDataType_t Btype, int ldb, const void* beta, void* C,
                            cudaDataType_t Ctype, int ldc, cublasComputeType_t computeType,
                            cublasGemmAlgo_t algo) {
  return cublasGemmStridedBatchedEx(handle, transa, transb, m, n, k, alpha, A, Atype, lda, 0, B,
                                    Btype, ldb, 0, beta, C, Ctype, ldc, 0, 1, computeType, algo);
}

cublasStatus_t refuse_to_start(cublasHandle_t*) {
  return CUBLAS_STATUS_NOT_INITIALIZED;
}

void* symbol(const char* library, const char* name) {
  if (std::getenv("BALORA_EMULATOR_NO_CUBLAS")) return nullptr;
  const char* broken = std::getenv("BALORA_EMULATOR_BROKEN_CUBLAS");
  if (broken && std::strstr(broken, library) && std::strcmp(name, "cublasCreate_v2") == 0) {
    return reinterpret_cast<void*>(&refuse_to_start);
  }
#define CUBLAS_FUNCTION(result, function, arguments)                      \
  static_assert(std::is_same_v<decltype(&function), function##_pointer>); \
  if (std::strcmp(name, #function) == 0) return reinterpret_cast<void*>(&function);
#include "runtime/blas.def"
#undef CUBLAS_FUNCTION
  return nullptr;
}

}  // namespace
}  // namespace balora::cuda::blas_api

// See cuda/runtime/blas_library.cu.
extern "C" void* balora_cublas_symbol(const char* library, const char* name) {
  return balora::cuda::blas_api::symbol(library, name);
}
