// qr, eigh, svd and randomized_svds as device functions: widen to f64, decompose (dense.h,
// low_rank_svds.h), round once.
#include "kernels/cpu/linalg/dense.h"
#include "kernels/cpu/linalg/low_rank_svds.h"
#include "kernels/cpu/linalg/scaled_gram.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"

namespace balora {

int32_t qr_kernel(Context* ctx, const balora_qr& o) {
  const QrResult result = thin_qr(ctx, widened(*o.a));
  store_matrix(result.q, *o.q);
  store_matrix(result.r, *o.r);
  return 0;
}

int32_t eigh_kernel(Context*, const balora_eigh& o) {
  const EighResult result = symmetric_eigen(widened(*o.a));
  store_values(result.values.data(), o.a->shape[0], *o.values);
  if (o.vectors) store_matrix(result.vectors, *o.vectors);
  return 0;
}

int32_t svd_kernel(Context* ctx, const balora_svd& o) {
  const SvdResult result = thin_svd(ctx, widened(*o.a));
  if (o.u) store_matrix(result.u, *o.u);
  store_values(result.s.data(), static_cast<int64_t>(result.s.size()), *o.s);
  if (o.vt) store_matrix(result.vt, *o.vt);
  return 0;
}

int32_t randomized_svds_kernel(Context* ctx, const balora_randomized_svds& o) {
  std::vector<LowRankProblem> problems;
  for (int32_t i = 0; i < o.count; ++i) {
    const View& a = *o.tasks[i].a;
    problems.push_back({{a.data, a.dtype, a.shape[0], a.shape[1]},
                        o.tasks[i].s->shape[0],
                        o.niter,
                        o.oversample,
                        o.tasks[i].seed});
  }
  low_rank_svds(ctx, problems,
                [&](size_t i, const SvdResult& result) { store_triplets(result, o.tasks[i]); });
  return 0;
}

int32_t gram_kernel(Context* ctx, const balora_gram& o) {
  if (o.scale) {
    auto* g = data_of<double>(o.g);
    if (!o.accumulate) std::fill_n(g, o.a->shape[1] * o.a->shape[1], 0.0);
    add_scaled_gram(ctx, *o.a, data_of<float>(o.scale), g);
    return 0;
  }
  const MatrixRef ref = matrix_ref(*o.a);
  symmetric_product_f64(ctx, o.a->shape[1], o.a->shape[0], ref.transposed(), ref,
                        data_of<double>(o.g), o.accumulate != 0);
  return 0;
}

}  // namespace balora
