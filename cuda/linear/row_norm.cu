// The norm of each row of W + sum over parts of scale B A (DoRA's ||W + s B A||): a product whose
// tiles are squared and summed where they are made, so the sum is never in memory. A block makes a
// tile of 128x128 in f32 (64x64 in f64), a thread 8x8 of it; strips of A and B of 16 ranks pass
// through shared memory. 2 O I R flops on the f32 units (the parts are f32: no TF32 unasked), W is
// read once; (4096,4096) with R=128 is 4.3 GFLOP against 32 MB of bf16, bound by arithmetic. The
// tiles' sums are f64 and added in order by a second kernel. A weight in blocks is decoded some
// rows at a time.
#include <cmath>
#include <vector>

#include "elementwise/elementwise.cuh"
#include "kernels/shared/low_rank.h"
#include "products/encoded.cuh"

namespace balora::cuda {
namespace {

constexpr int kSide = 16;      // threads along each side of a tile
constexpr int kDepth = 16;     // ranks of a strip
constexpr int kMaxParts = 32;  // in a launch; more are joined to one first

struct Parts {
  const void* a[kMaxParts];  // (R,I)
  const void* b[kMaxParts];  // (O,R)
  int64_t rank[kMaxParts];
  double scale[kMaxParts];
  int32_t count;
};

template <typename A>
struct Tile {
  static constexpr int kPer = sizeof(A) == 4 ? 8 : 4;  // elements of a thread along each side
  static constexpr int kVector = kPackOf<A>;
  static constexpr int kSize = kSide * kPer;
  // Element i of thread t: neighbours by the width of a shared memory access.
  __device__ static int index(int t, int i) {
    return i / kVector * (kSide * kVector) + t * kVector + i % kVector;
  }
};

// The first row and column of a tile of the weight, and the weight's extents.
struct TilePlace {
  int first_row, first_column, rows, columns;
};

// strip_a[k][column], strip_b[k][row] = scale * b; zeros outside. A thread keeps one column of A
// and one rank of B.
template <typename A>
__device__ void load_strips(const Parts& parts, int part, int first_rank, const TilePlace& tile,
                            A* strip_a, A* strip_b) {
  const auto [first_row, first_column, rows, columns] = tile;
  constexpr int kSize = Tile<A>::kSize, kThreads = kSide * kSide;
  constexpr int kStep = kThreads / kSize;
  const int rank = static_cast<int>(parts.rank[part]), t = threadIdx.x;
  const A scale = static_cast<A>(parts.scale[part]);
  const int c = t % kSize, column = first_column + c;
  const A* a = static_cast<const A*>(parts.a[part]) + column;
  for (int k = t / kSize; k < kDepth; k += kStep) {
    const bool inside = first_rank + k < rank && column < columns;
    strip_a[k * kSize + c] = inside ? a[static_cast<int64_t>(first_rank + k) * columns] : A(0);
  }
  const int k = t % kDepth;
  const A* b = static_cast<const A*>(parts.b[part]) + first_rank + k;
  for (int r = t / kDepth; r < kSize; r += kThreads / kDepth) {
    const bool inside = first_rank + k < rank && first_row + r < rows;
    strip_b[k * (kSize + Tile<A>::kVector) + r] =
        inside ? b[static_cast<int64_t>(first_row + r) * rank] * scale : A(0);
  }
}

template <typename A>
__device__ void multiply_strips(const A* strip_a, const A* strip_b, int tx, int ty,
                                A (&sum)[Tile<A>::kPer][Tile<A>::kPer]) {
  using T = Tile<A>;
  using Vector = Pack<A, T::kVector>;
  BALORA_UNROLL
  for (int k = 0; k < kDepth; ++k) {
    A a[T::kPer], b[T::kPer];
    BALORA_UNROLL
    for (int i = 0; i < T::kPer; i += T::kVector) {
      const auto va = *reinterpret_cast<const Vector*>(strip_a + k * T::kSize + T::index(tx, i));
      const auto vb =
          *reinterpret_cast<const Vector*>(strip_b + k * (T::kSize + T::kVector) + T::index(ty, i));
      BALORA_UNROLL
      for (int j = 0; j < T::kVector; ++j) {
        a[i + j] = va.at[j];
        b[i + j] = vb.at[j];
      }
    }
    BALORA_UNROLL
    for (int i = 0; i < T::kPer; ++i) {
      BALORA_UNROLL
      for (int j = 0; j < T::kPer; ++j) sum[i][j] += b[i] * a[j];
    }
  }
}

// partial (column tiles, O)
template <typename A>
__global__ void __launch_bounds__(kSide* kSide, 2)
    norm_tiles(Operand weight, const __grid_constant__ Parts parts, int64_t rows, int64_t columns,
               double* partial) {
  using T = Tile<A>;
  using Vector = Pack<A, T::kVector>;
  BALORA_SHARED(Vector, shared_a, kDepth * T::kSize / T::kVector);
  BALORA_SHARED(Vector, shared_b, kDepth * (T::kSize / T::kVector + 1));
  A* strip_a = shared_a[0].at;
  A* strip_b = shared_b[0].at;
  const int tx = threadIdx.x % kSide, ty = threadIdx.x / kSide;
  const int first_row = static_cast<int>(blockIdx.x) * T::kSize;
  const int first_column = static_cast<int>(blockIdx.y) * T::kSize;
  A sum[T::kPer][T::kPer] = {};
  for (int part = 0; part < parts.count; ++part) {
    for (int k = 0; k < parts.rank[part]; k += kDepth) {
      load_strips(parts, part, k,
                  {first_row, first_column, static_cast<int>(rows), static_cast<int>(columns)},
                  strip_a, strip_b);
      __syncthreads();
      multiply_strips(strip_a, strip_b, tx, ty, sum);
      __syncthreads();
    }
  }
  BALORA_UNROLL
  for (int i = 0; i < T::kPer; ++i) {
    const int row = first_row + T::index(ty, i);
    A squares = 0;  // of eight elements; more are added in f64
    BALORA_UNROLL
    for (int j = 0; j < T::kPer; ++j) {
      const int column = first_column + T::index(tx, j);
      if (row < rows && column < columns) {
        const A value = read<A>(weight, static_cast<int64_t>(row) * columns + column) + sum[i][j];
        squares += value * value;
      }
    }
    double total = squares;
    for (int offset = kSide / 2; offset > 0; offset /= 2) {
      total += __shfl_xor_sync(kAllLanes, total, offset);
    }
    if (tx == 0 && row < rows) partial[static_cast<int64_t>(blockIdx.y) * rows + row] = total;
  }
}

template <typename A>
__global__ void add_tiles(const double* partial, int64_t tiles, int64_t rows, A* norm) {
  for (int64_t row = thread_index(); row < rows; row += thread_count()) {
    double total = 0;
    for (int64_t t = 0; t < tiles; ++t) total += partial[t * rows + row];
    norm[row] = static_cast<A>(std::sqrt(total));
  }
}

// to (rows,cols) = scale * from, rows of `to` stride apart.
template <typename A>
__global__ void copy_block(const A* from, int64_t rows, int64_t cols, A scale, A* to,
                           int64_t stride) {
  for (int64_t at = thread_index(); at < rows * cols; at += thread_count()) {
    to[at / cols * stride + at % cols] = scale * from[at];
  }
}

// One product of all: their A one below the other, their scaled B side by side.
template <typename A>
Parts joined(Context* ctx, const std::vector<LowRankProduct>& products, int64_t rows,
             int64_t columns) {
  Parts all{};
  all.count = 1, all.scale[0] = 1;
  for (const LowRankProduct& product : products) all.rank[0] += product.a->shape[0];
  const int64_t ranks = all.rank[0];
  A* const a = workspace<A>(ctx, ranks * columns);
  A* const b = workspace<A>(ctx, ranks * rows);
  const auto copy = [&](const View& from, double scale, A* to, int64_t stride) {
    const int64_t count = view_numel(from);
    if (count == 0) return;
    launch(ctx, "row_norm", elements(count), copy_block<A>, data_of<A>(&from), from.shape[0],
           from.shape[1], static_cast<A>(scale), to, stride);
  };
  int64_t first = 0;
  for (const LowRankProduct& product : products) {
    copy(*product.a, 1, a + first * columns, columns);
    copy(*product.b, product.scale, b + first, ranks);
    first += product.a->shape[0];
  }
  all.a[0] = a, all.b[0] = b;
  return all;
}

template <typename A>
Parts parts_of(Context* ctx, const std::vector<LowRankProduct>& products, int64_t rows,
               int64_t columns) {
  if (products.size() > kMaxParts) return joined<A>(ctx, products, rows, columns);
  Parts out{};
  for (const LowRankProduct& product : products) {
    out.a[out.count] = product.a->data, out.b[out.count] = product.b->data;
    out.rank[out.count] = product.a->shape[0], out.scale[out.count] = product.scale;
    ++out.count;
  }
  return out;
}

// The parts of the rows from `first` on.
template <typename A>
Parts from_row(Parts parts, int64_t first) {
  for (int32_t i = 0; i < parts.count; ++i) {
    parts.b[i] = static_cast<const A*>(parts.b[i]) + first * parts.rank[i];
  }
  return parts;
}

// partial (tiles of columns, rows)
template <typename A>
void norms_of_rows(Context* ctx, const View& weight, const Parts& parts, double* partial, A* norm) {
  constexpr int64_t kSize = Tile<A>::kSize;
  const int64_t rows = weight.shape[0], columns = weight.shape[1];
  const int64_t tiles = ceil_div(columns, kSize);
  const dim3 grid(static_cast<unsigned>(ceil_div(rows, kSize)), static_cast<unsigned>(tiles));
  launch(ctx, "row_norm", Grid{grid, dim3(kSide * kSide)}, norm_tiles<A>, operand(&weight), parts,
         rows, columns, partial);
  launch(ctx, "row_norm", elements(rows), add_tiles<A>, partial, tiles, rows, norm);
}

}  // namespace

int32_t row_norm_kernel(Context* ctx, const balora_row_norm& o) {
  const View& weight = dense_or_encoded(o.weight);
  const int64_t rows = weight.shape[0], columns = weight.shape[1];
  const std::vector<LowRankProduct> products = products_of(balora::parts_of(o));
  if (rows == 0) return 0;
  dispatch_accumulator(weight.dtype, [&]<typename A>() {
    const Parts all = parts_of<A>(ctx, products, rows, columns);
    const int64_t tiles = ceil_div(columns, int64_t{Tile<A>::kSize});
    if (!weight.encoding) {
      auto* partial = workspace<double>(ctx, tiles * rows);
      return norms_of_rows(ctx, weight, all, partial, data_of<A>(o.norm));
    }
    const int64_t bytes = columns * element_size(weight.dtype), slice = slice_of(ctx, rows, bytes);
    auto* partial = workspace<double>(ctx, tiles * slice);
    View part = weight;
    part.encoding = nullptr, part.data = workspace<char>(ctx, slice * bytes);
    for (int64_t first = 0; first < rows; first += slice) {
      part.shape[0] = std::min(slice, rows - first);
      decode_panel(ctx, weight, {first, part.shape[0], 0, columns},
                   {part.data, part.dtype, columns});
      norms_of_rows(ctx, part, from_row<A>(all, first), partial, data_of<A>(o.norm) + first);
    }
  });
  return 0;
}

}  // namespace balora::cuda
