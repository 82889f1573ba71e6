// qr, eigh, svd and gram_spectrum as rows: widen to f64, decompose on the device (qr.cuh,
// eigen.cuh, dense_svd.cuh), round once.
#include "eigen.cuh"

namespace balora::cuda {

int32_t eigh_kernel(Context* ctx, const View* a, const View* values, const View* vectors) {
  Scratch scratch(ctx);
  const int64_t n = a->shape[0];
  const Dense wide = widened(scratch, *a), found(scratch, n, 1);
  const Dense columns = vectors ? Dense(scratch, n, n) : Dense();
  symmetric_eigen(scratch, n, wide.data(), found.data(), columns.data());
  store_values(ctx, found.data(), *values);
  if (vectors) store_values(ctx, columns.data(), *vectors);
  return 0;
}

}  // namespace balora::cuda
