// The CPU's block Krylov iteration (kernels/cpu/linalg/krylov.cc) with a fixed number of restarts
// instead of a test on the host: converged pairs stay as they are. A block has k + 4 columns
// rounded up to 8, the basis four blocks: with k = 10 the projected problem is of order 64, which
// one block of threads solves in one launch. 8 cycles of 3 new blocks are polynomials of degree 24;
// where the 17th value is 0.8 of the 10th that leaves 1e-10 of what the start lacks. A cycle is
// about 60 launches, most of them f64 products with 16 columns: 12 n b m flops for a basis of m
// columns beside three products with A. New columns are made orthogonal to the basis and to each
// other three times over, by products and a Cholesky factor of their Gram matrix; a column that is
// in the others' span to rounding becomes zero, which adds an eigenvalue 0 to the projected problem
// and nothing else.
#include "linalg/leading_pairs.cuh"

#include "linalg/krylov.cuh"

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

__global__ void check_residuals(const double* lengths, int64_t count, const double* values,
                                Fault* fault, int32_t row) {
  for (int64_t j = thread_index(); j < count; j += thread_count()) {
    if (lengths[j] > kResidual * values[0]) report_fault(fault, kNotConverged, row, j, 0);
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
        apply_(apply),
        row_(row),
        basis_(scratch, n, kBlocks * block),
        images_(scratch, n, kBlocks * block),
        next_(scratch, n, block) {}

  Eigenpairs run(int64_t k) {
    launch(ctx_, row_, elements(next_.size()), start_block, next_.data(), n_ * block_);
    Ritz found;
    for (int cycle = 0; cycle < kCycles; ++cycle) {
      while (basis_.cols < basis_.storage.cols) extend();
      found = ritz(scratch_, basis_, images_, block_, row_);
      if (cycle + 1 < kCycles) restart(found);
    }
    const Dense lengths = residual_lengths(scratch_, found);
    launch(ctx_, row_, elements(k), check_residuals, lengths.data(), k, found.values.data(),
           state_of(ctx_).fault, fault_row(row_));
    Eigenpairs pairs = {Dense(scratch_, k, 1), leading_columns(scratch_, found.vectors, k)};
    convert_matrix(ctx_, k, 1, {found.values.data(), BALORA_F64, 1},
                   {pairs.values.data(), BALORA_F64, 1});
    return pairs;
  }

 private:
  void restart(Ritz& found) {
    basis_.cols = images_.cols = 0;
    basis_.append(ctx_, found.vectors);
    images_.append(ctx_, found.images);
    next_ = std::move(found.rest);
  }

  // Appends next_, made orthonormal, and its image, which is the next block.
  void extend() {
    for (int pass = 0; pass < 3; ++pass) orthonormalise();
    basis_.append(ctx_, next_);
    Dense image(scratch_, n_, block_);
    apply_(next_.data(), block_, block_, image.data(), block_);
    images_.append(ctx_, image);
    next_ = std::move(image);
  }

  void orthonormalise() {
    if (basis_.cols) project_out(scratch_, basis_, next_);
    const Dense gram = product_tn(scratch_, next_, next_);
    const Dense factor(scratch_, block_, block_), weights(scratch_, block_, block_);
    launch(ctx_, row_, {dim3(1), dim3(kOneBlock)}, orthonormal_weights, gram.data(),
           static_cast<int>(block_), factor.data(), weights.data());
    next_ = product(scratch_, next_, weights);
  }

  Scratch& scratch_;
  Context* ctx_;
  int64_t n_, block_;
  const ApplyOperator& apply_;
  const char* row_;
  Basis basis_, images_;
  Dense next_;
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
  symmetric_eigen(scratch, a.rows, a.data(), {values.data(), vectors.data()}, row);
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
