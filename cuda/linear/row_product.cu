// row_product.cuh. A warp has one column of C, its lanes go along k, so that B is read in whole
// lines; it multiplies kRows rows of A at a time. An element of C is the sum of the lanes' sums in
// one fixed order, whatever the rows.
//
// 2 m n k operations on the plain cores. With one row a weight is read once, at the speed of
// memory: k n bytes times its type's. With many rows B comes from L2 every kRows rows; that is
// slower than the tensor cores, but only f32 (without TF32 there are none for it), f64 and f16
// come here. Not measured on a GPU.
#include "linear/row_product.cuh"

namespace balora::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kRows = 4;

template <typename A>
struct Product {
  int64_t m, n, k;
  A alpha, beta;
  A* c;
  int64_t a_stride, b_stride, c_stride;
};

template <typename TA, typename TB, typename A>
__global__ void __launch_bounds__(kWarps* kWarp)
    multiply_rows(const TA* a, const TB* b, Product<A> o) {
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = int64_t{gridDim.x} * kWarps;
  for (int64_t column = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp; column < o.n;
       column += warps) {
    const TB* const w = b + column * o.b_stride;
    for (int64_t first = 0; first < o.m; first += kRows) {
      A sums[kRows] = {};
      for (int64_t at = lane; at < o.k; at += kWarp) {
        const A value = load(w[at]);
        BALORA_UNROLL
        for (int r = 0; r < kRows; ++r) {
          // A row that is not there is the last one, so that every sum is the same instruction's.
          const int64_t row = min(first + r, o.m - 1);
          sums[r] += static_cast<A>(load(a[row * o.a_stride + at])) * value;
        }
      }
      BALORA_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const A sum = o.alpha * warp_reduce(sums[r]);
        if (lane != 0 || first + r >= o.m) continue;
        A& to = o.c[(first + r) * o.c_stride + column];
        to = o.beta == A(0) ? sum : sum + o.beta * to;
      }
    }
  }
}

}  // namespace

void row_product(Context* ctx, const GemmShape& shape, double alpha, const GemmOperand& a,
                 const GemmOperand& b, double beta, const GemmResult& c) {
  if (shape.batch != 1 || a.transposed || !b.transposed) {
    throw std::runtime_error("row_product: A must be row by row, and B stored (n,k)");
  }
  if (shape.m == 0 || shape.n == 0) return;
  Grid grid;
  grid.blocks =
      dim3(static_cast<unsigned>(std::min<int64_t>(ceil_div(shape.n, kWarps), kMaxBlocks)));
  grid.threads = dim3(kWarps * kWarp);
  const auto run = [&]<typename TA, typename TB>() {
    using A = Acc<TA>;
    const Product<A> product{.m = shape.m,
                             .n = shape.n,
                             .k = shape.k,
                             .alpha = static_cast<A>(alpha),
                             .beta = static_cast<A>(beta),
                             .c = static_cast<A*>(c.data),
                             .a_stride = a.stride,
                             .b_stride = b.stride,
                             .c_stride = c.stride};
    launch(ctx, "linear", grid, multiply_rows<TA, TB, A>, static_cast<const TA*>(a.data),
           static_cast<const TB*>(b.data), product);
  };
  if (a.dtype == BALORA_F64 && b.dtype == BALORA_F64)
    return run.template operator()<double, double>();
  if (a.dtype == BALORA_F32 && b.dtype == BALORA_F32)
    return run.template operator()<float, float>();
  if (a.dtype == BALORA_F16 && b.dtype == BALORA_F16) return run.template operator()<f16, f16>();
  if (a.dtype == BALORA_F16 && b.dtype == BALORA_F32) return run.template operator()<f16, float>();
  throw std::runtime_error("row_product: no kernel for these types");
}

}  // namespace balora::cuda
