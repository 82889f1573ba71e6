// The CPU's block Krylov iteration (kernels/cpu/krylov.cc) with a fixed number of restarts instead
// of a test on the host: converged pairs stay as they are. A block has k + 4 columns rounded up to
// 8, the basis four blocks: with k = 10 the projected problem is of order 64, which one block of
// threads solves in one launch. 8 cycles of 3 new blocks are polynomials of degree 24; where the
// 17th value is 0.8 of the 10th that leaves 1e-10 of what the start lacks. A cycle is about 60
// launches, most of them f64 products with 16 columns: 12 n b m flops for a basis of m columns
// beside three products with A. New columns are made orthogonal to the basis and to each other
// three times over, by products and a Cholesky factor of their Gram matrix; a column that is in the
// others' span to rounding becomes zero, which adds an eigenvalue 0 to the projected problem and
// nothing else.
#include "leading_pairs.cuh"

namespace balora::cuda {
namespace {

constexpr int64_t kDenseOrder = 192;
constexpr int kBlocks = 4;  // of a basis
constexpr int kCycles = 8;
constexpr double kResidual = 1e-6;  // over the largest eigenvalue, reported above it
constexpr int kOneBlock = 256;      // threads

int64_t block_for(int64_t k) {
  return ceil_div(k + 4, 8) * 8;
}

// Values in [-1, 1) that depend on the index alone.
__global__ void start_block(double* x, int64_t n) {
  for (int64_t i = thread_index(); i < n; i += thread_count()) {
    uint64_t bits = (static_cast<uint64_t>(i) + 1) * 0x9e3779b97f4a7c15u;  // splitmix64
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111ebu;
    x[i] = static_cast<double>((bits ^ bits >> 31) >> 11) * 0x1p-52 - 1;
  }
}

// One block of threads. gram (b,b) = Y^T Y -> weights (b,b), upper triangular, with the columns of
// Y weights orthonormal, zero where a column depends on those before it. r (b,b) is scratch.
__global__ void orthonormal_weights(const double* gram, int b, double* r, double* weights) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const double smallest = b * 0x1p-50;
  const auto length = [&](int i) {
    const double square = gram[i * b + i];
    return square > 0 ? 1 / sqrt(square) : 0.0;
  };
  for (int at = thread; at < b * b; at += threads) {
    r[at] = gram[at] * length(at / b) * length(at % b);
    weights[at] = 0;
  }
  __syncthreads();
  for (int j = 0; j < b; ++j) {
    const double pivot = r[j * b + j];
    const double inverse = pivot > smallest ? 1 / sqrt(pivot) : 0;
    __syncthreads();
    for (int i = j + thread; i < b; i += threads) r[j * b + i] *= inverse;
    __syncthreads();
    const int left = b - j - 1;
    for (int at = thread; at < left * left; at += threads) {
      const int i = j + 1 + at / left, c = j + 1 + at % left;
      if (c >= i) r[i * b + c] -= r[j * b + i] * r[j * b + c];
    }
    __syncthreads();
  }
  for (int c = thread; c < b; c += threads) {  // column c of the inverse
    if (!(r[c * b + c] > 0)) continue;
    for (int i = c; i >= 0; --i) {
      if (!(r[i * b + i] > 0)) continue;
      double sum = i == c ? 1 : 0;
      for (int q = i + 1; q <= c; ++q) sum -= r[i * b + q] * weights[q * b + c];
      weights[i * b + c] = sum / r[i * b + i];
    }
  }
  __syncthreads();
  for (int at = thread; at < b * b; at += threads) weights[at] *= length(at / b);
}

// The k largest of ascending pairs, descending. vectors may be null.
__global__ void take_largest(const double* values, const double* vectors, int64_t n, int64_t k,
                             double* largest, double* columns) {
  for (int64_t at = thread_index(); at < n * k; at += thread_count()) {
    const int64_t i = at / k, j = at % k;
    columns[at] = vectors[i * n + n - 1 - j];
    if (i == 0) largest[j] = values[n - 1 - j];
  }
}

// to (n,cols) = from, rows apart by strides.
__global__ void copy_columns(const double* from, int64_t from_stride, int64_t n, int64_t cols,
                             double* to, int64_t to_stride) {
  for (int64_t at = thread_index(); at < n * cols; at += thread_count()) {
    to[at / cols * to_stride + at % cols] = from[at / cols * from_stride + at % cols];
  }
}

// r = image - value x, by columns.
__global__ void take_residual(const double* image, const double* x, const double* values, int64_t n,
                              int64_t cols, double* r) {
  for (int64_t at = thread_index(); at < n * cols; at += thread_count()) {
    r[at] = image[at] - values[at % cols] * x[at];
  }
}

// Block j: the length of residual column j.
__global__ void check_residual(const double* r, int64_t n, int64_t cols, const double* values,
                               Fault* fault, int32_t row) {
  BALORA_SHARED(double, scratch, kWarp + 1);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    const double value = r[i * cols + blockIdx.x];
    sum += value * value;
  }
  sum = block_reduce(sum, 0.0, scratch);
  if (threadIdx.x == 0 && sqrt(sum) > kResidual * values[0]) {
    report_fault(fault, kNotConverged, row, static_cast<int64_t>(blockIdx.x), 0);
  }
}

class BlockKrylov {
 public:
  BlockKrylov(Scratch& scratch, int64_t n, int64_t block, const ApplyOperator& apply,
              const char* row)
      : scratch_(scratch),
        ctx_(scratch.ctx()),
        n_(n),
        block_(block),
        capacity_(kBlocks * block),
        apply_(apply),
        row_(row),
        basis_(scratch, n, capacity_),
        images_(scratch, n, capacity_),
        next_(scratch, n, block) {}

  Eigenpairs run(int64_t k) {
    launch(ctx_, row_, elements(next_.size()), start_block, next_.data(), next_.size());
    for (int cycle = 0; cycle < kCycles; ++cycle) {
      while (used_ < capacity_) extend();
      project();
    }
    launch(ctx_, row_, {dim3(static_cast<unsigned>(k)), dim3(256)}, check_residual, next_.data(),
           n_, block_, values_.data(), state_of(ctx_).fault, fault_row(row_));
    Eigenpairs pairs = {Dense(scratch_, k, 1), Dense(scratch_, n_, k)};
    copy(values_.data(), 1, k, 1, pairs.values.data(), 1);
    copy(basis_.data(), capacity_, n_, k, pairs.vectors.data(), k);
    return pairs;
  }

 private:
  void copy(const double* from, int64_t from_stride, int64_t n, int64_t cols, double* to,
            int64_t to_stride) {
    launch(ctx_, row_, elements(n * cols), copy_columns, from, from_stride, n, cols, to, to_stride);
  }

  // Appends next_, made orthonormal, and its image, which is the next block.
  void extend() {
    for (int pass = 0; pass < 3; ++pass) orthonormalise();
    copy(next_.data(), block_, n_, block_, basis_.data() + used_, capacity_);
    apply_(next_.data(), block_, block_, images_.data() + used_, capacity_);
    copy(images_.data() + used_, capacity_, n_, block_, next_.data(), block_);
    used_ += block_;
  }

  void orthonormalise() {
    if (used_) {
      const Dense inside(scratch_, used_, block_);
      multiply(ctx_, {used_, block_, n_}, 1, {basis_.data(), capacity_, true},
               {next_.data(), block_}, 0, inside.data(), block_);
      multiply(ctx_, {n_, block_, used_}, -1, {basis_.data(), capacity_}, {inside.data(), block_},
               1, next_.data(), block_);
    }
    const Dense gram = product_tn(scratch_, next_, next_);
    const Dense factor(scratch_, block_, block_), weights(scratch_, block_, block_);
    launch(ctx_, row_, {dim3(1), dim3(kOneBlock)}, orthonormal_weights, gram.data(),
           static_cast<int>(block_), factor.data(), weights.data());
    next_ = product(scratch_, next_, weights);
  }

  Dense combine(const Dense& columns, const Dense& weights) {
    Dense out(scratch_, n_, block_);
    multiply(ctx_, {n_, block_, capacity_}, 1, {columns.data(), capacity_},
             {weights.data(), block_}, 0, out.data(), block_);
    return out;
  }

  // Rayleigh-Ritz: the leading pairs within the basis become its first block, their residuals
  // next_.
  void project() {
    Dense inner(scratch_, capacity_, capacity_);
    multiply(ctx_, {capacity_, capacity_, n_}, 1, {basis_.data(), capacity_, true},
             {images_.data(), capacity_}, 0, inner.data(), capacity_);
    symmetrise(ctx_, inner);
    const Eigenpairs pairs = dense_pairs(scratch_, inner, block_, row_);
    const Dense vectors = combine(basis_, pairs.vectors), image = combine(images_, pairs.vectors);
    launch(ctx_, row_, elements(next_.size()), take_residual, image.data(), vectors.data(),
           pairs.values.data(), n_, block_, next_.data());
    copy(vectors.data(), block_, n_, block_, basis_.data(), capacity_);
    copy(image.data(), block_, n_, block_, images_.data(), capacity_);
    values_ = copied(scratch_, pairs.values);
    used_ = block_;
  }

  Scratch& scratch_;
  Context* ctx_;
  int64_t n_, block_, capacity_, used_ = 0;
  const ApplyOperator& apply_;
  const char* row_;
  Dense basis_, images_, next_, values_;
};

}  // namespace

bool iterates_for(int64_t rank, int64_t k) {
  return rank > kDenseOrder && 8 * block_for(k) <= rank;
}

Eigenpairs krylov_pairs(Scratch& scratch, int64_t n, int64_t k, const ApplyOperator& apply,
                        const char* row) {
  return BlockKrylov(scratch, n, block_for(k), apply, row).run(k);
}

Eigenpairs dense_pairs(Scratch& scratch, const Dense& a, int64_t k, const char* row) {
  const Dense values(scratch, a.rows, 1), vectors(scratch, a.rows, a.rows);
  symmetric_eigen(scratch, a.rows, a.data(), values.data(), vectors.data(), row);
  Eigenpairs pairs = {Dense(scratch, k, 1), Dense(scratch, a.rows, k)};
  launch(scratch.ctx(), row, elements(a.rows * k), take_largest, values.data(), vectors.data(),
         a.rows, k, pairs.values.data(), pairs.vectors.data());
  return pairs;
}

Eigenpairs leading_pairs(Scratch& scratch, const Dense& a, int64_t k, const char* row) {
  if (!iterates_for(a.rows, k)) return dense_pairs(scratch, a, k, row);
  const ApplyOperator apply = [&](const double* x, int64_t x_stride, int64_t cols, double* y,
                                  int64_t y_stride) {
    multiply(scratch.ctx(), {a.rows, cols, a.rows}, 1, {a.data(), a.rows}, {x, x_stride}, 0, y,
             y_stride);
  };
  return krylov_pairs(scratch, a.rows, k, apply, row);
}

}  // namespace balora::cuda
