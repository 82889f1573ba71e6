#include "blas.cuh"

namespace balora::cuda {

struct Blas {};

Blas* open_blas(DeviceState&) {
  return new Blas();
}
void close_blas(Blas* blas) {
  delete blas;
}

namespace {

template <typename T, typename C>
__global__ void multiply(GemmShape shape, Acc<T> alpha, GemmOperand a, GemmOperand b, Acc<T> beta,
                         GemmResult c) {
  const int64_t count = shape.m * shape.n * shape.batch;
  for (int64_t at = thread_index(); at < count; at += thread_count()) {
    const int64_t batch = at / (shape.m * shape.n);
    const int64_t row = at / shape.n % shape.m, column = at % shape.n;
    const T* left = static_cast<const T*>(a.data) + batch * a.batch_stride;
    const T* right = static_cast<const T*>(b.data) + batch * b.batch_stride;
    Acc<T> sum = 0;
    for (int64_t k = 0; k < shape.k; ++k) {
      sum += load(left[a.transposed ? k * a.stride + row : row * a.stride + k]) *
             load(right[b.transposed ? column * b.stride + k : k * b.stride + column]);
    }
    C* out = static_cast<C*>(c.data) + batch * c.batch_stride + row * c.stride + column;
    const Acc<T> before = beta == 0 ? 0 : beta * load(*out);
    *out = store<C>(alpha * sum + before);
  }
}

}  // namespace

void gemm(Context* ctx, const GemmShape& shape, double alpha, const GemmOperand& a,
          const GemmOperand& b, double beta, const GemmResult& c) {
  const int64_t count = shape.m * shape.n * shape.batch;
  if (count == 0) return;
  dispatch_float(a.dtype, [&]<typename T>() {
    const auto start = [&]<typename C>() {
      launch(ctx, "gemm", elements(count), multiply<T, C>, shape, alpha, a, b, beta, c);
    };
    if (c.dtype == a.dtype) {
      start.template operator()<T>();
    } else {
      start.template operator()<Acc<T>>();
    }
  });
}

}  // namespace balora::cuda
