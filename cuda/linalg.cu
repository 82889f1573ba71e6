// qr, eigh, svd and gram_spectrum as rows: widen to f64, decompose on the device (qr.cuh,
// eigen.cuh, dense_svd.cuh), round once.
#include "dense_svd.cuh"
#include "eigen.cuh"
#include "qr.cuh"

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

int32_t qr_kernel(Context* ctx, const View* a, const View* q, const View* r) {
  Scratch scratch(ctx);
  const QrFactors found = thin_qr(scratch, widened(scratch, *a));
  store_values(ctx, found.q.data(), *q);
  store_values(ctx, found.r.data(), *r);
  return 0;
}

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

int32_t svd_kernel(Context* ctx, const View* a, const View* u, const View* s, const View* vt) {
  Scratch scratch(ctx);
  const SvdFactors found = thin_svd(scratch, widened(scratch, *a), u || vt);
  if (u) store_values(ctx, found.u.data(), *u);
  store_values(ctx, found.s.data(), *s);
  if (vt) store_values(ctx, found.vt.data(), *vt);
  return 0;
}

// sigma(H W^T)^2 = eig(L^T M L), G = L L^T with L from the eigen-decomposition: Cholesky fails on a
// rank-deficient G.
int32_t gram_spectrum_kernel(Context* ctx, const View* m, const View* g, const View* s) {
  Scratch scratch(ctx);
  const int64_t c = m->shape[0];
  const Dense wide = widened(scratch, *g), values(scratch, c, 1), root(scratch, c, c);
  symmetric_eigen(scratch, c, wide.data(), values.data(), root.data(), "gram_spectrum");
  launch(ctx, "gram_spectrum", elements(c * c), scale_columns_by_root, root.data(), c,
         values.data());
  const Dense inner = product_tn(scratch, root, product(scratch, widened(scratch, *m), root));
  symmetrise(ctx, inner);
  symmetric_eigen(scratch, c, inner.data(), values.data(), nullptr, "gram_spectrum");
  const Dense sigma(scratch, c, 1);
  launch(ctx, "gram_spectrum", elements(c), falling_roots, values.data(), c, sigma.data());
  store_values(ctx, sigma.data(), *s);
  return 0;
}

}  // namespace balora::cuda
