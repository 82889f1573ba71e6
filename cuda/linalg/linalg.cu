// qr, eigh and svd as rows: widen to f64, decompose on the device (qr.cuh, eigen.cuh,
// dense_svd.cuh), round once.
#include "linalg/dense_svd.cuh"
#include "linalg/eigen.cuh"
#include "linalg/qr.cuh"

namespace balora::cuda {

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
  symmetric_eigen(scratch, n, wide.data(), {found.data(), columns.data()});
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

}  // namespace balora::cuda
