// a^T a with sums in f64, from any float type: blocks of rows are widened to f64 and multiplied on
// the tensor cores (or f64 units) by cuBLAS, which adds them up; rows that have a scale are
// multiplied by it in f64. 2 N C^2 flops; 9 bytes an element of a for widening it. The lower
// triangle is copied to the upper, so g is symmetric to the bit.
#include "runtime/blas.cuh"

namespace balora::cuda {
namespace {

constexpr int64_t kBlockBytes = int64_t{64} << 20;  // of widened rows

__global__ void mirror_lower(double* g, int64_t c) {
  for (int64_t at = thread_index(); at < c * c; at += thread_count()) {
    const int64_t row = at / c, column = at % c;
    if (column > row) g[at] = g[column * c + row];
  }
}

__global__ void scale_rows(double* a, const float* scale, int64_t rows, int64_t c) {
  for (int64_t at = thread_index(); at < rows * c; at += thread_count()) {
    a[at] *= static_cast<double>(scale[at / c]);
  }
}

}  // namespace

int32_t gram_kernel(Context* ctx, const balora_gram& o) {
  const int64_t n = o.a->shape[0], c = o.a->shape[1];
  if (c == 0) return 0;
  const int64_t step = std::clamp<int64_t>(kBlockBytes / (8 * c), 1, std::max<int64_t>(n, 1));
  const bool widens = o.a->dtype != BALORA_F64 || o.scale;
  double* wide = widens ? workspace<double>(ctx, step * c) : nullptr;
  double beta = o.accumulate ? 1 : 0;
  int64_t first = 0;
  do {  // once for no rows, which leaves beta g
    const int64_t rows = std::min(step, n - first);
    const void* block = offset_by(o.a->data, first * c, o.a->dtype);
    if (wide) convert_matrix(ctx, rows, c, {block, o.a->dtype, c}, {wide, BALORA_F64, c});
    if (o.scale && rows > 0) {
      launch(ctx, "gram", elements(rows * c), scale_rows, wide, data_of<float>(o.scale) + first,
             rows, c);
    }
    const void* data = wide ? wide : block;
    gemm(ctx, {c, c, rows}, 1, {data, BALORA_F64, c, true}, {data, BALORA_F64, c}, beta,
         {o.g->data, BALORA_F64, c});
    beta = 1;
    first += rows;
  } while (first < n);
  launch(ctx, "gram", elements(c * c), mirror_lower, data_of<double>(o.g), c);
  return 0;
}

}  // namespace balora::cuda
