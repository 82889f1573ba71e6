// qr, eigh, svd and gram_spectrum as rows: widen to f64, decompose on the device (qr.cuh,
// eigen.cuh, dense_svd.cuh), round once.
#include "linalg/dense_svd.cuh"
#include "linalg/eigen.cuh"
#include "linalg/qr.cuh"

namespace balora::cuda {
namespace {

// Negative eigenvalues are rounding and count as zero.
__global__ void scale_columns_by_root(double* a, int64_t n, const double* values) {
  for (int64_t i = thread_index(); i < n * n; i += thread_count()) {
    const double value = values[i % n];
    a[i] *= value < 0 ? 0 : sqrt(value);
  }
}

__global__ void falling_roots(const double* values, int64_t n, double* s) {
  for (int64_t i = thread_index(); i < n; i += thread_count()) {
    const double value = values[n - 1 - i];
    s[i] = value < 0 ? 0 : sqrt(value);
  }
}

}  // namespace

int32_t qr_kernel(Context* ctx, const balora_qr& o) {
  Scratch scratch(ctx);
  const QrFactors found = thin_qr(scratch, widened(scratch, *o.a));
  store_values(ctx, found.q.data(), *o.q);
  store_values(ctx, found.r.data(), *o.r);
  return 0;
}

int32_t eigh_kernel(Context* ctx, const balora_eigh& o) {
  Scratch scratch(ctx);
  const int64_t n = o.a->shape[0];
  const Dense wide = widened(scratch, *o.a), found(scratch, n, 1);
  const Dense columns = o.vectors ? Dense(scratch, n, n) : Dense();
  symmetric_eigen(scratch, n, wide.data(), found.data(), columns.data());
  store_values(ctx, found.data(), *o.values);
  if (o.vectors) store_values(ctx, columns.data(), *o.vectors);
  return 0;
}

int32_t svd_kernel(Context* ctx, const balora_svd& o) {
  Scratch scratch(ctx);
  const SvdFactors found = thin_svd(scratch, widened(scratch, *o.a), o.u || o.vt);
  if (o.u) store_values(ctx, found.u.data(), *o.u);
  store_values(ctx, found.s.data(), *o.s);
  if (o.vt) store_values(ctx, found.vt.data(), *o.vt);
  return 0;
}

// sigma(H W^T)^2 = eig(L^T M L), G = L L^T with L from the eigen-decomposition: Cholesky fails on a
// rank-deficient G.
int32_t gram_spectrum_kernel(Context* ctx, const balora_gram_spectrum& o) {
  Scratch scratch(ctx);
  const int64_t c = o.m->shape[0];
  const Dense wide = widened(scratch, *o.g), values(scratch, c, 1), root(scratch, c, c);
  symmetric_eigen(scratch, c, wide.data(), values.data(), root.data(), "gram_spectrum");
  launch(ctx, "gram_spectrum", elements(c * c), scale_columns_by_root, root.data(), c,
         values.data());
  const Dense inner = product_tn(scratch, root, product(scratch, widened(scratch, *o.m), root));
  symmetrise(ctx, inner);
  symmetric_eigen(scratch, c, inner.data(), values.data(), nullptr, "gram_spectrum");
  const Dense sigma(scratch, c, 1);
  launch(ctx, "gram_spectrum", elements(c), falling_roots, values.data(), c, sigma.data());
  store_values(ctx, sigma.data(), *o.s);
  return 0;
}

}  // namespace balora::cuda
