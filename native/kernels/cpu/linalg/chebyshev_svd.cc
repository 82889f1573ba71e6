#include "kernels/cpu/linalg/chebyshev_svd.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/linalg/subspace_steps.h"
#include "kernels/cpu/products/transpose16.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/parallel.h"

namespace balora {
namespace {

constexpr int64_t kSmallestExtent = 128;
constexpr int64_t kFilterDegree = 3;  // of a polynomial between two orthonormalisations
constexpr double kWidestSpectrum = 1e6;
constexpr double kNarrowSpectrum = 30;  // ratio of eigenvalues up to which 8 bits of G will do
constexpr int64_t kFirstProducts = 10;  // with A^T A before the energy is looked at
constexpr int64_t kMoreProducts = 6;
constexpr int64_t kPlainPowers = 4;  // powers up to which each is a product of its own
constexpr int64_t kPowersOfProduct = 3;
constexpr double kFineSpectrum = 100;  // ratio of eigenvalues up to which 16 bits of G are as A
constexpr int kMaxRounds = 8;
constexpr double kSmallestSigma = 1e-3;
constexpr double kSmallestRest = 0.05;

int64_t block_cols(const LowRankProblem& p) {
  return tile_padded(p.rank + p.oversample);
}

// Products that take no less than niter powers would. A polynomial of degree d parts eigenvalues
// more than the power d does: where they hardly differ a product of T_3 is worth 6 powers, 2.7
// where they are 1.5 times apart, and 2.2 at 2 times, where 16 powers have long come to f32's end.
int64_t products_for(int64_t niter) {
  if (niter < 0) return kFirstProducts;
  const int64_t more = std::max<int64_t>(niter - kPlainPowers, 0);
  return std::min(niter, kPlainPowers) + (more + kPowersOfProduct - 1) / kPowersOfProduct;
}

// Whether to form A^T A: it costs m n^2 and then saves 4 m n - 2 n^2 a column and product. In bf16
// its flops are about six times as fast.
bool gram_pays(const LowRankProblem& p) {
  const double m = static_cast<double>(p.w.m()), n = static_cast<double>(p.w.n());
  const double columns =
      static_cast<double>(block_cols(p)) * static_cast<double>(products_for(p.niter));
  const double speed = tile_gemm_has_bf16() ? 6 : 1;
  return (m * n * n + 2 * n * n * columns) / speed < 4 * m * n * columns;
}

double sum_of_largest(const Matrix& gram, int64_t count) {
  double sum = 0;
  for (const double value : leading_pairs(symmetric_eigen(gram), count).values) {
    sum += std::max(value, 0.0);
  }
  return sum;
}

class ChebyshevSvd {
 public:
  explicit ChebyshevSvd(const LowRankProblem& problem, void* scratch = nullptr)
      : p_(problem), arena_(scratch), w_(problem.w) {
    const int64_t m = w_.padded_m(), n = w_.padded_n(), b = block_cols(p_);
    for (FloatBlock* block : {&q_, &y_, &z_}) *block = take_block(arena_, n, b);
    image_ = take_block(arena_, m, b);
    flipped_ = take_block(arena_, b, m);
    product_ = take_block(arena_, b, m);
    wide_ = arena_.take<double>(m * b);
    weights_ = arena_.take<float>(b * b);
    rows_ = tile_padded(w_.rows), cols_ = tile_padded(w_.cols);
    copied_ = w_.dtype != BALORA_F32 || rows_ != w_.rows || cols_ != w_.cols ||
              reinterpret_cast<uintptr_t>(w_.data) % 64 != 0;
    exact_ = copied_ ? arena_.take<float>(rows_ * cols_) : static_cast<const float*>(w_.data);
    if (gram_pays(p_)) gram_.emplace(w_, b, arena_);
  }

  int64_t bytes() const { return arena_.used(); }

  SvdOutcome run(const Context* ctx, SvdResult* result) {
    ctx_ = ctx;
    prepare();
    fill_uniform(q_, w_.n(), p_.seed);
    int64_t products = products_for(p_.niter);
    for (int round = 0; round < kMaxRounds; ++round) {
      if (!iterate(products, round == 0) || !orthonormalise(q_)) return SvdOutcome::kIllConditioned;
      double before = 0;
      const SvdOutcome outcome = ritz(&before);
      if (outcome != SvdOutcome::kDone) return outcome;
      if (p_.niter >= 0 || converged(before)) return finish(result);
      products = kMoreProducts;
      gram_.reset();  // a small gain that stays is its rounding: go on with A itself
    }
    return SvdOutcome::kStalled;
  }

 private:
  void prepare() {
    for (int64_t i = 0; i < w_.rows; ++i) {
      if (copied_) {
        auto* to = const_cast<float*>(exact_) + i * cols_;
        dispatch_float(w_.dtype, [&]<typename T>() {
          convert_row(static_cast<const T*>(w_.data) + i * w_.cols, to, w_.cols);
        });
        std::fill(to + w_.cols, to + cols_, 0.0f);
      }
      total_ += squared_norm(exact_ + i * cols_, cols_);
    }
    if (copied_) {
      std::fill_n(const_cast<float*>(exact_) + w_.rows * cols_, (rows_ - w_.rows) * cols_, 0.0f);
    }
    if (gram_) gram_->make(ctx_);
  }

  // y (cols of W, b) = W^T x and y (rows of W, b) = W x, in f32.
  void times(const FloatBlock& x, const FloatBlock& y) {
    parallel_for(ctx_, rows_ / 32, 8, [&](int64_t begin, int64_t end) {
      tile_gemm({(end - begin) * 32, x.cols, cols_}, exact_ + begin * 32 * cols_, cols_, x.values,
                y.values + begin * 32 * y.cols, y.cols, false);
    });
  }
  void transposed_times(const FloatBlock& x, const FloatBlock& y) {
    transpose_floats(x.values, x.rows, x.cols, flipped_.values);
    parallel_for(ctx_, x.cols / 32, 1, [&](int64_t begin, int64_t end) {
      tile_gemm({(end - begin) * 32, cols_, rows_}, flipped_.values + begin * 32 * rows_, rows_,
                exact_, product_.values + begin * 32 * cols_, cols_, false);
    });
    transpose_floats(product_.values, x.cols, cols_, y.values);
  }
  void forward(const FloatBlock& x, const FloatBlock& y) {  // y = A x
    w_.tall() ? times(x, y) : transposed_times(x, y);
  }
  void backward(const FloatBlock& x, const FloatBlock& y) {  // y = A^T x
    w_.tall() ? transposed_times(x, y) : times(x, y);
  }

  void apply(const FloatBlock& x, const FloatBlock& y) {
    if (gram_) return gram_->apply(ctx_, x, y, fine_);
    forward(x, image_);
    backward(image_, y);
  }

  bool orthonormalise(FloatBlock& x) { return orthonormalise_columns(x, z_, wide_, weights_); }

  bool iterate(int64_t products, bool fresh) {
    for (int64_t most = fresh ? 1 : kFilterDegree; products > 0;) {
      fine_ = products <= most;  // the last one's noise stays in q
      if (fine_ && ends_with_gram()) gram_->refine(ctx_);
      const int64_t degree = filter(std::min(most, products), fresh);
      if (degree == 0 || !orthonormalise(q_)) return false;
      products -= degree;
      most = std::min(most + 1, kFilterDegree);
      fresh = false;
    }
    return true;
  }

  // q becomes T_d(2 G / beta - 1) q, whose values are within 1 on [0, beta]; beta is the least
  // Rayleigh quotient of q. Fresh, q knows nothing of the spectrum yet and becomes G q. Returns d,
  // at most `most` and smaller where the spectrum is wide, or 0 if it is too wide.
  int64_t filter(int64_t most, bool fresh) {
    apply(q_, y_);
    if (fresh) {
      std::swap(q_.values, y_.values);
      return 1;
    }
    Quotients quotients = rayleigh_quotients(q_, y_);
    if (gram_ && !quotients.within(kNarrowSpectrum) && gram_->refine(ctx_)) {
      apply(q_, y_);
      quotients = rayleigh_quotients(q_, y_);
    }
    if (!quotients.within(kWidestSpectrum)) return 0;
    spread_ = quotients.largest / quotients.smallest;
    return chebyshev_polynomial(q_, y_, z_, quotients, most,
                                [this](const FloatBlock& x, const FloatBlock& y) { apply(x, y); });
  }

  // Whether the last polynomial in G can be as good as a power iteration with A.
  bool ends_with_gram() const { return p_.niter > kPlainPowers && gram_ && gram_->exact(); }

  // One power iteration with A, then the pairs of A within q. *before: the energy that q captured
  // before that.
  SvdOutcome ritz(double* before) {
    if (!orthonormalise(q_)) return SvdOutcome::kIllConditioned;
    forward(q_, image_);
    if (ends_with_gram() && spread_ <= kFineSpectrum) return pairs();
    if (p_.niter < 0) *before = sum_of_largest(block_gram(image_, wide_), p_.rank);
    backward(image_, q_);
    for (int pass = 0; pass < 2; ++pass) {
      if (!orthonormalise(q_)) return SvdOutcome::kIllConditioned;
    }
    forward(q_, image_);
    return pairs();
  }

  SvdOutcome pairs() {  // of A within q, from its image
    EighResult leading = leading_pairs(symmetric_eigen(block_gram(image_, wide_)), q_.cols);
    values_ = std::move(leading.values);
    vectors_ = std::move(leading.vectors);
    for (double& value : values_) value = std::max(value, 0.0);
    captured_ = std::accumulate(values_.begin(), values_.begin() + p_.rank, 0.0);
    const double smallest = kSmallestSigma * kSmallestSigma * values_[0];
    if (!(last_value() > smallest)) return SvdOutcome::kSmallSigma;
    return rest() > kSmallestRest ? SvdOutcome::kDone : SvdOutcome::kSmallRest;
  }

  double last_value() const { return values_[static_cast<size_t>(p_.rank - 1)]; }
  double rest() const { return std::sqrt(std::max(0.0, 1 - captured_ / total_)); }

  // A power iteration takes 1 - x^2 of a lost share of the energy away, x the ratio of the unwanted
  // eigenvalue behind it to the wanted one: what is still lost is at most x^2 / (1 - x^2) of what
  // it gained. x is taken from the middle of the block's surplus, which is nearer
  // to 1 than its end.
  bool converged(double before) const {
    const size_t middle = static_cast<size_t>(p_.rank + (q_.cols - p_.rank) / 2);
    const double ratio = std::min(std::pow(values_[middle] / last_value(), 2), 0.95);
    const double error = rest();
    const double allowed = 2 * error * (1e-5 * error + 1e-6) * total_;
    const double gain = std::max(captured_ - before, 0.0);
    return gain * ratio / (1 - ratio) <= allowed / 2;
  }

  SvdOutcome finish(SvdResult* result) {
    const int64_t rank = p_.rank;
    Matrix left = vectors_;
    result->s.clear();
    for (int64_t j = 0; j < rank; ++j) {
      const double sigma = std::sqrt(values_[static_cast<size_t>(j)]);
      result->s.push_back(sigma);
      for (int64_t i = 0; i < left.rows; ++i) left(i, j) /= sigma;
    }
    block_times(q_, vectors_, weights_, z_);
    block_times(image_, left, weights_, {image_.rows, image_.cols, flipped_.values});
    const FloatBlock u{image_.rows, image_.cols, flipped_.values};
    const FloatBlock& of_rows = w_.tall() ? u : z_;
    const FloatBlock& of_cols = w_.tall() ? z_ : u;
    result->u = Matrix(w_.rows, rank);
    result->vt = Matrix(rank, w_.cols);
    for (int64_t i = 0; i < w_.rows; ++i) {
      for (int64_t j = 0; j < rank; ++j) result->u(i, j) = of_rows.values[i * of_rows.cols + j];
    }
    for (int64_t i = 0; i < w_.cols; ++i) {
      for (int64_t j = 0; j < rank; ++j) result->vt(j, i) = of_cols.values[i * of_cols.cols + j];
    }
    return SvdOutcome::kDone;
  }

  LowRankProblem p_;
  Arena arena_;
  WeightSource w_;
  const Context* ctx_ = nullptr;
  FloatBlock q_, y_, z_;          // (n,b)
  FloatBlock image_;              // (m,b): A q
  FloatBlock flipped_, product_;  // (b,m)
  double* wide_;
  float* weights_;
  int64_t rows_, cols_;  // of W, padded
  bool copied_;
  const float* exact_;  // W in f32, padded
  std::optional<LowPrecisionGram> gram_;
  bool fine_ = false;
  double spread_ = 0;  // of the eigenvalues within q, at the last polynomial
  double total_ = 0;   // |W|_F^2
  double captured_ = 0;
  std::vector<double> values_;  // eigenvalues of A^T A within q, descending
  Matrix vectors_;
};

}  // namespace

bool chebyshev_svd_fits(const LowRankProblem& p) {
  return p.w.dtype != BALORA_F64 && p.w.n() >= kSmallestExtent && 2 * block_cols(p) <= p.w.n();
}

int64_t chebyshev_svd_bytes(const LowRankProblem& problem) {
  return ChebyshevSvd(problem).bytes();
}

SvdOutcome chebyshev_svd(const Context* ctx, const LowRankProblem& problem, void* scratch,
                         SvdResult* result) {
  return ChebyshevSvd(problem, scratch).run(ctx, result);
}

}  // namespace balora
