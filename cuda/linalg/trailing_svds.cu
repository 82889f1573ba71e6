// trailing_svds: the last singular triplets in f64 from the complete decomposition (dense_svd.cuh).
// The CPU's way around it (kernels/cpu/linalg/trailing_svd.h) saves the small problems that a host
// solves slowly; here the decomposition of 4096 x 4096 is made once for each weight, at a start.
#include "linalg/dense_svd.cuh"

namespace balora::cuda {

int32_t trailing_svds_kernel(Context* ctx, const balora_trailing_svds& o) {
  Scratch scratch(ctx);
  for (int32_t i = 0; i < o.count; ++i) {
    const SvdOperands& task = o.tasks[i];
    const int64_t rank = task.s->shape[0];
    const SvdFactors found = thin_svd(scratch, widened(scratch, *task.a), true, "trailing_svds");
    const int64_t first = found.s.rows - rank;
    const Dense left(scratch, found.u.rows, rank);
    convert_matrix(ctx, left.rows, rank, {found.u.data() + first, BALORA_F64, found.u.cols},
                   {left.data(), BALORA_F64, rank});
    store_values(ctx, left.data(), *task.u);
    store_values(ctx, found.s.data() + first, *task.s);
    store_values(ctx, found.vt.data() + first * found.vt.cols, *task.vt);
  }
  return 0;
}

}  // namespace balora::cuda
