// gemm.h by way of oneDNN (f32, bf16) and product_f64.h. Mixed and half types are widened into
// scratch first; a large B is widened and multiplied in blocks of columns or rows so that scratch
// stays bounded.
#include "kernels/cpu/products/gemm.h"

#include <algorithm>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/products/onednn.h"
#include "kernels/cpu/products/product_f64.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/scratch.h"
#include "kernels/shared/rows.h"
#include "platform/cpu.h"

namespace balora {
namespace {

constexpr int64_t kWideBlockElements = int64_t{1} << 20;  // of B: 4 MiB in f32

enum class Path { kEmpty, kPrimitive, kF32, kF64 };

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

// A primitive multiplies bf16, and a batch of f32 matrices: one call shares it among the threads.
Path choose_path(const GemmShape& s, const GemmInput& a, const GemmInput& b, const GemmOutput& c) {
  if (s.m == 0 || s.n == 0 || s.batch == 0) return Path::kEmpty;
  if (a.dtype == BALORA_F64 || b.dtype == BALORA_F64 || c.dtype == BALORA_F64) return Path::kF64;
  const bool bf16 = a.dtype == BALORA_BF16 && b.dtype == BALORA_BF16 && c.dtype != BALORA_F16;
  const bool f32 = a.dtype == BALORA_F32 && b.dtype == BALORA_F32 && c.dtype == BALORA_F32;
  const bool wanted = (bf16 && platform::cpu().uses(platform::kBf16)) || (f32 && s.batch > 1);
  return wanted && primitive_takes(s, a, b, c) ? Path::kPrimitive : Path::kF32;
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

// One f32 product. dnnl_sgemm needs no primitive and, inside a parallel region, runs
// on the calling thread.
void f32_product(const GemmShape& s, const GemmInput& a, const GemmInput& b, float* c, int64_t ldc,
                 const GemmScale& scale) {
  dnnl::error::wrap_c_api(
      dnnl_sgemm(a.transposed ? 'T' : 'N', b.transposed ? 'T' : 'N', s.m, s.n, s.k,
                 static_cast<float>(scale.alpha), static_cast<const float*>(a.data), a.ld,
                 static_cast<const float*>(b.data), b.ld, static_cast<float>(scale.beta), c, ldc),
      "f32 matrix product");
}

void multiply_rows(const Context* ctx, const GemmShape& s, double* c, int64_t ldc, double factor) {
  if (factor == 1) return;
  parallel_for(ctx, s.m, 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < s.n; ++j) c[i * ldc + j] *= factor;
    }
  });
}

void f64_product(const Context* ctx, const GemmShape& s, const GemmInput& a, const GemmInput& b,
                 double* c, int64_t ldc, const GemmScale& scale) {
  const auto ref = [](const GemmInput& x) {
    const MatrixRef stored{x.data, BALORA_F64, x.ld, 1};
    return x.transposed ? stored.transposed() : stored;
  };
  if (scale.beta == 0) {
    product_f64(ctx, s.m, s.n, s.k, ref(a), ref(b), c, ldc);
  } else if (scale.alpha == 0) {
    return multiply_rows(ctx, s, c, ldc, scale.beta);
  } else {
    multiply_rows(ctx, s, c, ldc, scale.beta / scale.alpha);
    add_product_f64(ctx, s.m, s.n, s.k, ref(a), ref(b), c, ldc);
  }
  multiply_rows(ctx, s, c, ldc, scale.alpha);
}

// A matrix as the stored rows and columns that hold op(X).
struct Stored {
  int64_t rows, cols;
};
Stored stored(const GemmInput& x, int64_t rows, int64_t cols) {
  return x.transposed ? Stored{cols, rows} : Stored{rows, cols};
}

// Scratch for the widened operands of one product.
template <typename T>
struct Wide {
  T* a;
  T* b;
  T* c;
};

// Widens what is not T, multiplies, and narrows C.
template <typename T>
void widened_product(Context* ctx, const GemmShape& s, GemmInput a, GemmInput b,
                     const GemmOutput& c, const GemmScale& scale, const Wide<T>& wide) {
  constexpr int32_t kType = kDtypeOfAcc<T>;
  const auto widen = [&](GemmInput& x, int64_t rows, int64_t cols, T* to) {
    if (x.dtype == kType) return;
    const Stored shape = stored(x, rows, cols);
    convert_rows(ctx, {x.data, x.dtype, x.ld}, {to, kType, shape.cols}, shape.rows, shape.cols);
    x.data = to, x.dtype = kType, x.ld = shape.cols;
  };
  widen(a, s.m, s.k, wide.a);
  widen(b, s.k, s.n, wide.b);
  T* out = static_cast<T*>(c.data);
  int64_t ldc = c.ld;
  const bool narrow = c.dtype != kType;
  if (narrow) {
    out = wide.c, ldc = s.n;
    if (scale.beta != 0) convert_rows(ctx, {c.data, c.dtype, c.ld}, {out, kType, ldc}, s.m, s.n);
  }
  if constexpr (sizeof(T) == 8) {
    f64_product(ctx, s, a, b, out, ldc, scale);
  } else {
    f32_product(s, a, b, out, ldc, scale);
  }
  if (narrow) convert_rows(ctx, {out, kType, ldc}, {c.data, c.dtype, c.ld}, s.m, s.n);
}

GemmOutput columns(GemmOutput c, int64_t first) {
  c.data = offset_by(c.data, first, c.dtype);
  return c;
}

// The part of B that is widened at a time: some of its columns, or of its rows where these are
// stored one after another and outnumber the columns. Columns would be few then, and each time read
// all of A.
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
  if (b.dtype == kType && c.dtype == kType) return {s.k, s.n};
  const bool sums = a.dtype == kType && c.dtype == kType;  // in place, part by part of k
  if (sums && !b.transposed && s.k > s.n) {
    return {std::min(s.k, even_share(s.k, fitting(s.n))), s.n};
  }
  return {s.k, std::min(s.n, fitting(s.k))};
}

template <typename T>
void wide_gemm(Context* ctx, const GemmShape& s, const GemmInput& a, const GemmInput& b,
               const GemmOutput& c, const GemmScale& scale) {
  constexpr int32_t kType = kDtypeOfAcc<T>;
  const WideBlock block = wide_block<T>(s, a, b, c);
  const Scratch<T> wide_a(ctx, a.dtype != kType ? s.m * s.k : 0);
  const Scratch<T> wide_b(ctx, b.dtype != kType ? block.k * block.n : 0);
  const Scratch<T> wide_c(ctx, c.dtype != kType ? s.m * block.n : 0);
  const Wide<T> wide = {wide_a.data(), wide_b.data(), wide_c.data()};
  GemmInput left = a;
  for (int64_t depth = 0; depth < s.k; depth += block.k) {
    if (depth > 0) left.data = at(a, a.transposed ? depth * a.ld : depth);
    for (int64_t first = 0; first < s.n; first += block.n) {
      GemmInput right = b;
      right.data = at(b, b.transposed ? first * b.ld + depth : depth * b.ld + first);
      const GemmShape part = {s.m, std::min(block.n, s.n - first), std::min(block.k, s.k - depth)};
      widened_product<T>(ctx, part, left, right, columns(c, first),
                         {scale.alpha, depth > 0 ? 1 : scale.beta}, wide);
      if (left.dtype != kType) {  // widened by the first block, dense from here on
        left.data = wide.a, left.dtype = kType, left.ld = stored(a, s.m, s.k).cols;
      }
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

}  // namespace

void gemm(Context* ctx, const GemmShape& s, const GemmInput& a, const GemmInput& b,
          const GemmOutput& c, const GemmScale& scale) {
  const Path path = choose_path(s, a, b, c);
  if (path == Path::kEmpty) return;
  const OneDnnThreads threads(ctx->num_threads);
  const auto one_by_one = [&](auto&& product) {
    for (int64_t i = 0; i < s.batch; ++i) {
      GemmInput ai = a, bi = b;
      GemmOutput ci = c;
      ai.data = at(a, i * a.batch_stride), bi.data = at(b, i * b.batch_stride);
      ci = columns(c, i * c.batch_stride);
      product(ai, bi, ci);
    }
  };
  const GemmShape single = {s.m, s.n, s.k};
  if (s.k == 0) {
    return one_by_one([&](auto&, auto&, auto& ci) { scale_only(single, ci, scale.beta); });
  }
  if (path == Path::kF64) {
    return one_by_one(
        [&](auto& ai, auto& bi, auto& ci) { wide_gemm<double>(ctx, single, ai, bi, ci, scale); });
  }
  if (path == Path::kPrimitive) {
    CpuState& state = CpuState::of(ctx);
    if (const auto matmul = state.matmul(spec_of(s, a, b, c, scale, ctx->num_threads))) {
      const Scratch<char> scratch(ctx, static_cast<int64_t>(matmul->scratch_bytes()));
      return matmul->execute(state.stream(), {a.data, b.data, c.data, scratch.data()});
    }
  }
  one_by_one(
      [&](auto& ai, auto& bi, auto& ci) { wide_gemm<float>(ctx, single, ai, bi, ci, scale); });
}

}  // namespace balora
