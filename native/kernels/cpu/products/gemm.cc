// gemm.h by way of oneDNN (f32, bf16) and product_f64.h. Mixed and half types are widened into
// scratch first; a large B is widened and multiplied in blocks of columns or rows so that scratch
// stays bounded.
#include "kernels/cpu/products/gemm.h"

#include <algorithm>
#include <utility>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/products/onednn.h"
#include "kernels/cpu/products/product_f64.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/implementation.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/scratch.h"
#include "kernels/shared/rows.h"

namespace balora {
namespace {

constexpr int64_t kWideBlockElements = int64_t{1} << 20;  // of B: 4 MiB in f32
constexpr int64_t kWideDepth = 1024;                      // of k, where A is widened by parts of it

struct Operands {
  GemmShape shape;
  GemmInput a, b;
  GemmOutput c;
  GemmScale scale;
};

// Several elements stored one to a row, and the rows apart: a strided row or column.
bool strided_vector(int64_t stored_rows, int64_t stored_cols, int64_t ld) {
  return stored_cols == 1 && stored_rows > 1 && ld != 1;
}
bool strided_vector(const GemmInput& x, int64_t rows, int64_t cols) {
  return x.transposed ? strided_vector(cols, rows, x.ld) : strided_vector(rows, cols, x.ld);
}

// oneDNN's primitives (3.7) find out which stride of a matrix is 1 without regard to its extents of
// 1, and take a strided vector for a dense one. They also refuse a batch of which both sides are
// repeated, and those of 3.12 take a batch with an inner extent of 1 for a dense one. dnnl_sgemm,
// matrix by matrix, goes by the leading dimension.
bool primitive_takes(const GemmShape& s, const GemmInput& a, const GemmInput& b,
                     const GemmOutput& c) {
  const bool one_product = s.batch > 1 && a.batch_stride == 0 && b.batch_stride == 0;
  const bool outer_products = s.batch > 1 && s.k == 1;
  return !one_product && !outer_products && !strided_vector(a, s.m, s.k) &&
         !strided_vector(b, s.k, s.n) && !strided_vector(s.m, s.n, c.ld);
}

bool is_bf16(const Operands& o) {
  return o.a.dtype == BALORA_BF16 && o.b.dtype == BALORA_BF16 &&
         (o.c.dtype == BALORA_BF16 || o.c.dtype == BALORA_F32) &&
         primitive_takes(o.shape, o.a, o.b, o.c);
}
// A batch of f32 matrices, which one call shares among the threads.
bool is_batch_of_f32(const Operands& o) {
  return o.a.dtype == BALORA_F32 && o.b.dtype == BALORA_F32 && o.c.dtype == BALORA_F32 &&
         o.shape.batch > 1 && primitive_takes(o.shape, o.a, o.b, o.c);
}
bool is_f64(const Operands& o) {
  return o.a.dtype == BALORA_F64 || o.b.dtype == BALORA_F64 || o.c.dtype == BALORA_F64;
}

struct Strides {
  int64_t row, col;
};

// The strides of op(X) (rows,cols); that of an extent of 1 is what a dense matrix has.
Strides strides_of(const GemmInput& x, int64_t rows, int64_t cols) {
  const Strides s = x.transposed ? Strides{1, x.ld} : Strides{x.ld, 1};
  return {rows == 1 ? cols : s.row, cols == 1 ? 1 : s.col};
}

// For what primitive_takes() takes.
MatmulSpec spec_of(const GemmShape& s, const GemmInput& a, const GemmInput& b, const GemmOutput& c,
                   const GemmScale& scale, int threads) {
  MatmulSpec spec;
  spec.batch = s.batch, spec.m = s.m, spec.n = s.n, spec.k = s.k;
  if (s.batch > 1) {
    spec.a_batch = a.batch_stride, spec.b_batch = b.batch_stride, spec.c_batch = c.batch_stride;
  }
  const Strides sa = strides_of(a, s.m, s.k), sb = strides_of(b, s.k, s.n);
  spec.a_row = sa.row, spec.a_col = sa.col;
  spec.b_row = sb.row, spec.b_col = sb.col;
  spec.c_row = s.m == 1 ? s.n : c.ld;
  spec.a_dtype = a.dtype, spec.b_dtype = b.dtype, spec.c_dtype = c.dtype;
  spec.alpha = static_cast<float>(scale.alpha), spec.beta = static_cast<float>(scale.beta);
  spec.threads = threads;
  return spec;
}

const void* at(const GemmInput& x, int64_t elements) {
  return offset_by(x.data, elements, x.dtype);
}

// One product of operands of one type. dnnl_sgemm needs no primitive and, inside a parallel region,
// runs on the calling thread.
void product(const Context*, const GemmShape& s, const GemmInput& a, const GemmInput& b, float* c,
             int64_t ldc, const GemmScale& scale) {
  dnnl::error::wrap_c_api(
      dnnl_sgemm(a.transposed ? 'T' : 'N', b.transposed ? 'T' : 'N', s.m, s.n, s.k,
                 static_cast<float>(scale.alpha), static_cast<const float*>(a.data), a.ld,
                 static_cast<const float*>(b.data), b.ld, static_cast<float>(scale.beta), c, ldc),
      "f32 matrix product");
}
void product(const Context* ctx, const GemmShape& s, const GemmInput& a, const GemmInput& b,
             double* c, int64_t ldc, const GemmScale& scale) {
  const auto ref = [](const GemmInput& x) {
    const MatrixRef stored{x.data, BALORA_F64, x.ld, 1};
    return x.transposed ? stored.transposed() : stored;
  };
  product_f64(ctx, s.m, s.n, s.k, ref(a), ref(b), c, ldc, scale.alpha, scale.beta);
}

GemmOutput columns(GemmOutput c, int64_t first) {
  c.data = offset_by(c.data, first, c.dtype);
  return c;
}

// The part of k, and of B's columns, that is widened at a time. Parts of k are taken where B's rows
// are stored one after another and C holds their sum: beside an A that is to be widened, so that
// only some of it is at a time, and where rows outnumber the columns, which would be few then, and
// each time read all of A.
struct WideBlock {
  int64_t k, n;
};

// Does not depend on m, so that a row is summed up the same way among any number of rows.
template <typename T>
WideBlock wide_block(const GemmShape& s, const GemmInput& a, const GemmInput& b,
                     const GemmOutput& c) {
  constexpr int32_t kType = kDtypeOfAcc<T>;
  const auto fitting = [](int64_t extent) {
    return std::max<int64_t>(kWideBlockElements / std::max<int64_t>(extent, 1), 64);
  };
  const bool sums = c.dtype == kType && !b.transposed;
  int64_t k = s.k;
  if (sums && a.dtype != kType && !a.transposed) {
    k = std::min(k, even_share(k, kWideDepth));
  } else if (sums && a.dtype == kType && b.dtype != kType && k > s.n) {
    return {std::min(k, even_share(k, fitting(s.n))), s.n};
  }
  return {k, b.dtype == kType && c.dtype == kType ? s.n : std::min(s.n, fitting(k))};
}

// Widens what is not T, multiplies, and narrows C.
template <typename T>
void wide_gemm(Context* ctx, const GemmShape& s, const GemmInput& a, const GemmInput& b,
               const GemmOutput& c, const GemmScale& scale) {
  constexpr int32_t kType = kDtypeOfAcc<T>;
  const WideBlock block = wide_block<T>(s, a, b, c);
  const Scratch<T> wide_a(ctx, a.dtype != kType ? s.m * block.k : 0);
  const Scratch<T> wide_b(ctx, b.dtype != kType ? block.k * block.n : 0);
  const Scratch<T> wide_c(ctx, c.dtype != kType ? s.m * block.n : 0);
  // `rows` x `cols` of op(X) from an element on.
  const auto widened = [&](GemmInput x, int64_t row, int64_t col, int64_t rows, int64_t cols,
                           T* to) -> GemmInput {
    x.data = at(x, x.transposed ? col * x.ld + row : row * x.ld + col);
    if (x.dtype == kType) return x;
    if (x.transposed) std::swap(rows, cols);
    convert_rows(ctx, {x.data, x.dtype, x.ld}, {to, kType, cols}, rows, cols);
    return {to, kType, cols, x.transposed};
  };
  for (int64_t depth = 0; depth < s.k; depth += block.k) {
    const int64_t k = std::min(block.k, s.k - depth);
    const GemmScale sum = {scale.alpha, depth > 0 ? 1 : scale.beta};
    const GemmInput left = widened(a, 0, depth, s.m, k, wide_a.data());
    for (int64_t first = 0; first < s.n; first += block.n) {
      const int64_t n = std::min(block.n, s.n - first);
      const GemmInput right = widened(b, depth, first, k, n, wide_b.data());
      const GemmOutput out = columns(c, first);
      if (out.dtype == kType) {
        product(ctx, {s.m, n, k}, left, right, static_cast<T*>(out.data), out.ld, sum);
        continue;
      }
      T* const wide = wide_c.data();
      if (sum.beta != 0) {
        convert_rows(ctx, {out.data, out.dtype, out.ld}, {wide, kType, n}, s.m, n);
      }
      product(ctx, {s.m, n, k}, left, right, wide, n, sum);
      convert_rows(ctx, {wide, kType, n}, {out.data, out.dtype, out.ld}, s.m, n);
    }
  }
}

// C = beta * C, for k = 0.
void scale_only(const GemmShape& s, const GemmOutput& c, double beta) {
  dispatch_float(c.dtype, [&]<typename T>() {
    for (int64_t i = 0; i < s.m; ++i) {
      T* row = static_cast<T*>(c.data) + i * c.ld;
      for (int64_t j = 0; j < s.n; ++j) {
        row[j] = store<T>(beta == 0 ? Acc<T>(0) : static_cast<Acc<T>>(beta) * load(row[j]));
      }
    }
  });
}

// Calls body(a, b, c) for each product of a batch.
template <typename Body>
void one_by_one(const Operands& o, const Body& body) {
  for (int64_t i = 0; i < o.shape.batch; ++i) {
    GemmInput a = o.a, b = o.b;
    GemmOutput c = o.c;
    a.data = at(a, i * a.batch_stride), b.data = at(b, i * b.batch_stride);
    c = columns(c, i * c.batch_stride);
    body(a, b, c);
  }
}

template <typename T>
void run_wide(Context* ctx, const Operands& o) {
  const GemmShape single = {o.shape.m, o.shape.n, o.shape.k};
  one_by_one(o, [&](const GemmInput& a, const GemmInput& b, const GemmOutput& c) {
    wide_gemm<T>(ctx, single, a, b, c, o.scale);
  });
}

void run_primitive(Context* ctx, const Operands& o) {
  CpuState& state = CpuState::of(ctx);
  const auto matmul = state.matmul(spec_of(o.shape, o.a, o.b, o.c, o.scale, ctx->num_threads));
  if (!matmul) return run_wide<float>(ctx, o);
  const Scratch<char> scratch(ctx, static_cast<int64_t>(matmul->scratch_bytes()));
  matmul->execute(state.stream(), {o.a.data, o.b.data, o.c.data, scratch.data()});
}

constexpr Implementation<Operands> kGemm[] = {
    {"f64", 0, is_f64, run_wide<double>},
    {"bf16", platform::kBf16, is_bf16, run_primitive},
    {"f32_batch", 0, is_batch_of_f32, run_primitive},
    {"f32", 0, nullptr, run_wide<float>},
};

}  // namespace

BALORA_IMPLEMENTATIONS(gemm, kGemm)

bool gemm_has_bf16() {
  return platform::cpu().uses(platform::kBf16);
}

void gemm(Context* ctx, const GemmShape& s, const GemmInput& a, const GemmInput& b,
          const GemmOutput& c, const GemmScale& scale) {
  if (s.m == 0 || s.n == 0 || s.batch == 0) return;
  const OneDnnThreads threads(ctx->num_threads);
  const Operands o = {s, a, b, c, scale};
  if (s.k > 0) {
    run_first(kGemm, ctx, o);
  } else {
    one_by_one(o, [&](const GemmInput&, const GemmInput&, const GemmOutput& ci) {
      scale_only({s.m, s.n, 0}, ci, scale.beta);
    });
  }
}

}  // namespace balora
