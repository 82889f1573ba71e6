// qr, eigh, svd and randomized_svds as device functions: widen to f64, decompose (dense.h,
// low_rank_svds.h), round once.
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/dense.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/low_rank_svds.h"

namespace balora {

int32_t qr_kernel(Context* ctx, const View* a, const View* q, const View* r) {
  const QrResult result = thin_qr(ctx, widened(matrix_ref(*a), a->shape[0], a->shape[1]));
  store_matrix(result.q, *q);
  store_matrix(result.r, *r);
  return 0;
}

int32_t eigh_kernel(Context*, const View* a, const View* values, const View* vectors) {
  const EighResult result = symmetric_eigen(widened(matrix_ref(*a), a->shape[0], a->shape[1]));
  store_values(result.values.data(), a->shape[0], *values);
  if (vectors) store_matrix(result.vectors, *vectors);
  return 0;
}

int32_t svd_kernel(Context* ctx, const View* a, const View* u, const View* s, const View* vt) {
  const SvdResult result = thin_svd(ctx, widened(matrix_ref(*a), a->shape[0], a->shape[1]));
  if (u) store_matrix(result.u, *u);
  store_values(result.s.data(), static_cast<int64_t>(result.s.size()), *s);
  if (vt) store_matrix(result.vt, *vt);
  return 0;
}

int32_t randomized_svds_kernel(Context* ctx, const SvdOperands* tasks, int32_t count, int64_t niter,
                               int64_t oversample) {
  std::vector<QuickProblem> problems;
  for (int32_t i = 0; i < count; ++i) {
    const View& a = *tasks[i].a;
    problems.push_back({{a.data, a.dtype, a.shape[0], a.shape[1]},
                        tasks[i].s->shape[0],
                        niter,
                        oversample,
                        tasks[i].seed});
  }
  low_rank_svds(ctx, problems, [&](size_t i, const SvdResult& result) {
    store_matrix(result.u, *tasks[i].u);
    store_values(result.s.data(), tasks[i].s->shape[0], *tasks[i].s);
    store_matrix(result.vt, *tasks[i].vt);
  });
  return 0;
}

int32_t gram_kernel(Context* ctx, const View* a, const View* g, int32_t accumulate) {
  const MatrixRef ref = matrix_ref(*a);
  symmetric_product_f64(ctx, a->shape[1], a->shape[0], ref.transposed(), ref, data_of<double>(g),
                        accumulate != 0);
  return 0;
}

}  // namespace balora
