// Incremental principal component analyses, a thread each. The components are the leading right
// singular vectors of a stack A of rows (kernels/operands/linalg.h), which are found by subspace
// iteration with A itself in f32, from the components of the rows before: these are near, so that
// two or three products with A^T A do. Polynomials of Chebyshev make most of each product
// (chebyshev_svd.h has them for A^T A in low precision). A component v with eigenvalue s^2 is there
// when |A^T A v - s^2 v| <= kResidual s^2; v is then as far as that over the relative gap to the
// eigenvalues that the subspace leaves out. Small stacks, and those that f32 does not do, are
// decomposed in f64.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/linalg/krylov.h"
#include "kernels/cpu/linalg/side_by_side.h"
#include "kernels/cpu/linalg/subspace_steps.h"
#include "kernels/cpu/products/transpose16.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/inline.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/stop.h"

namespace balora {
namespace {

constexpr double kResidual = 1e-2;
constexpr int64_t kSmallestExtent = 128;  // up to here a complete decomposition takes milliseconds
constexpr int64_t kPanelRows = 64;        // of A, which stay in a cache for both products
constexpr int64_t kDepth = 256;  // of a product, whose other operand stays in the first cache
constexpr int64_t kSkew = 16;    // elements, so that rows of a power of two do not share cache sets
constexpr int kFirstPowers = 2;  // of A^T A, where nothing is known before
constexpr int kMaxRounds = 12;
constexpr int64_t kMostDegree = 4;
constexpr double kLargestNoise = 1.6e6;  // a tenth over f32's rounding: what products may amplify
constexpr int64_t kOversample = 10;      // of the search in f64

BALORA_INLINE void add_row(const float* row, int64_t count, double* sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += static_cast<double>(row[i]);
}

BALORA_INLINE void subtract_row(const float* from, int64_t count, float* row) {
  for (int64_t i = 0; i < count; ++i) row[i] -= from[i];
}

// to[i][j] = scale[j] q[i][j] + factor r[i][j] over the rows of a block.
BALORA_INLINE void combine_columns(const float* q, const float* scale, const float* r, float factor,
                                   int64_t rows, int64_t cols, float* to) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      to[i * cols + j] = scale[j] * q[i * cols + j] + factor * r[i * cols + j];
    }
  }
}

class PcaUpdate {
 public:
  explicit PcaUpdate(const PcaOperands& task, void* scratch = nullptr) : t_(task), arena_(scratch) {
    n_ = t_.x->shape[0], c_ = t_.x->shape[1];
    rank_ = t_.new_singular->shape[0], kept_ = t_.new_vectors->shape[0];
    m_ = n_ + (t_.vectors ? rank_ + 1 : 0);
    rows_ = (m_ + kPanelRows - 1) / kPanelRows * kPanelRows;
    cols_ = tile_padded(c_), ld_ = cols_ + kSkew;
    a_ = arena_.take<float>(rows_ * ld_);
    sums_ = arena_.take<double>(cols_);
    mean_ = arena_.take<float>(cols_);
    if (!searches()) return;
    const int64_t b = tile_padded(kept_);
    for (FloatBlock* block : {&q_, &y_, &z_}) *block = take_block(arena_, cols_, b);
    across_ = take_block(arena_, b, cols_);
    image_ = take_block(arena_, kPanelRows, b);
    flipped_ = take_block(arena_, b, kPanelRows);
    wide_ = arena_.take<double>(2 * cols_ * b);
    weights_ = arena_.take<float>(b * b);
  }

  int64_t bytes() const { return arena_.used(); }

  void run(const Context* ctx) {
    ctx_ = ctx;
    stack();
    if (searches() && search()) return;
    if (is_stopped(ctx)) return;
    const MatrixRef a{a_, BALORA_F32, ld_, 1};
    store(std::min(m_, c_) <= kSmallestExtent
              ? thin_svd(ctx, widened(a, m_, c_))
              : converged_svd(ctx, a, m_, c_, rank_, kOversample, t_.seed));
  }

 private:
  bool searches() const {
    return kept_ > rank_ && std::min(m_, c_) > kSmallestExtent && tile_padded(kept_) * 2 <= c_;
  }

  // A, its mean's parts and the new sum of squares.
  void stack() {
    for (int64_t i = 0; i < m_; ++i) std::fill(a_ + i * ld_ + c_, a_ + i * ld_ + cols_, 0.0f);
    std::fill(a_ + m_ * ld_, a_ + rows_ * ld_, 0.0f);
    std::fill_n(sums_, cols_, 0.0);
    const int64_t first = t_.vectors ? rank_ : 0;
    for (int64_t i = 0; i < n_; ++i) {
      float* row = a_ + (first + i) * ld_;
      dispatch_float(t_.x->dtype, [&]<typename T>() {
        convert_row(static_cast<const T*>(t_.x->data) + i * c_, row, c_);
      });
      at_level<&add_row>(row, cols_, sums_);
    }
    for (int64_t j = 0; j < cols_; ++j) {
      mean_[j] = static_cast<float>(sums_[j] / static_cast<double>(n_));
    }
    double scatter = 0;
    for (int64_t i = 0; i < n_; ++i) {
      float* row = a_ + (first + i) * ld_;
      at_level<&subtract_row>(mean_, cols_, row);
      scatter += squared_norm(row, cols_);
    }
    if (t_.vectors) scatter += add_known();
    scatter_ = scatter;
    std::copy_n(mean_, c_, data_of<float>(t_.new_mean));
    *data_of<float>(t_.new_scatter) = static_cast<float>(scatter);
  }

  // The rows of what is known; mean_ becomes that of all rows. Returns the scatter that they add.
  double add_known() {
    for (int64_t i = 0; i < rank_; ++i) {
      const float* from = data_of<float>(t_.vectors) + i * c_;
      const float singular = data_of<float>(t_.singular)[i];
      for (int64_t j = 0; j < c_; ++j) a_[i * ld_ + j] = singular * from[j];
    }
    const auto before = static_cast<double>(t_.count), rows = static_cast<double>(n_);
    const auto factor = static_cast<float>(std::sqrt(before / (before + rows) * rows));
    const auto share = static_cast<float>(rows / (before + rows));
    float* shift = a_ + (rank_ + n_) * ld_;
    for (int64_t j = 0; j < c_; ++j) {
      const float step = mean_[j] - data_of<float>(t_.mean)[j];
      shift[j] = step * factor;
      mean_[j] = data_of<float>(t_.mean)[j] + step * share;
    }
    return static_cast<double>(*data_of<float>(t_.scatter)) + squared_norm(shift, cols_);
  }

  // y = A^T A x
  void apply(const FloatBlock& x, const FloatBlock& y) {
    const int64_t b = x.cols;
    std::fill_n(across_.values, across_.size(), 0.0f);
    for (int64_t row = 0; row < rows_ && !is_stopped(ctx_); row += kPanelRows) {
      const float* panel = a_ + row * ld_;
      for (int64_t k = 0; k < cols_; k += kDepth) {
        tile_gemm({kPanelRows, b, std::min(kDepth, cols_ - k)}, panel + k, ld_, x.values + k * b,
                  image_.values, b, k > 0);
      }
      transpose_floats(image_.values, kPanelRows, b, flipped_.values);
      tile_gemm({b, cols_, kPanelRows}, flipped_.values, kPanelRows, panel, ld_, across_.values,
                cols_, true);
    }
    transpose_floats(across_.values, b, cols_, y.values);
  }

  bool orthonormalise() { return orthonormalise_columns(q_, z_, wide_, weights_); }

  void multiply(FloatBlock& block, const Matrix& weights) {
    block_times(block, weights, weights_, z_);
    std::swap(block.values, z_.values);
  }

  // q becomes the vectors that are known, and random ones in the place of others. Returns whether
  // any is known.
  bool start() {
    fill_uniform(q_, c_, t_.seed);
    if (!t_.vectors) return false;
    for (int64_t i = 0; i < kept_; ++i) {
      const float* from = data_of<float>(t_.vectors) + i * c_;
      if (std::all_of(from, from + c_, [](float value) { return value == 0; })) continue;
      for (int64_t j = 0; j < c_; ++j) q_.values[j * q_.cols + i] = from[j];
    }
    return true;
  }

  bool search() {
    const bool known = start();
    if (!orthonormalise()) return false;
    for (int power = 0; !known && power < kFirstPowers; ++power) {
      apply(q_, y_);
      std::swap(q_.values, y_.values);
      if (!orthonormalise()) return false;
    }
    for (int round = 0; round < kMaxRounds; ++round) {
      apply(q_, y_);
      if (is_stopped(ctx_) || !ritz()) return false;
      if (largest_residual() <= kResidual) {
        store_found();
        return true;
      }
      filter(degree());
      for (int pass = 0; pass < 2; ++pass) {
        if (!orthonormalise()) return false;
      }
    }
    return false;
  }

  // The pairs of A^T A within q: q becomes their vectors, and y what A^T A makes of these outside of
  // q. What it makes within is known from the pairs, without the noise of the largest ones.
  bool ritz() {
    const Matrix inside = symmetric_products(q_, y_, wide_);
    for (const double value : inside.values) {
      if (!std::isfinite(value)) return false;
    }
    block_times(q_, inside, weights_, z_);
    at_level<&subtract_row>(z_.values, y_.size(), y_.values);
    EighResult leading = leading_pairs(symmetric_eigen(inside), q_.cols);
    values_ = std::move(leading.values);
    multiply(q_, leading.vectors);
    multiply(y_, leading.vectors);
    residuals_ = column_products(y_, y_);
    for (size_t j = 0; j < static_cast<size_t>(rank_); ++j) {
      if (!(values_[j] > 0)) return false;
      residuals_[j] = std::sqrt(residuals_[j]) / static_cast<float>(values_[j]);
    }
    return true;
  }

  double largest_residual() const {
    return *std::max_element(residuals_.begin(), residuals_.begin() + rank_);
  }

  // Half of the interval [0, beta] on which the polynomials stay within 1.
  double half() const {
    return std::max(values_.back(), 1e-3 * values_[static_cast<size_t>(rank_ - 1)]) / 2;
  }

  // The least one that takes all residuals to kResidual, as far as f32 goes: the noise of a product,
  // along the first vector, grows with each further one.
  int64_t degree() const {
    const double spread = values_[0] / half();
    const auto most = 1 + static_cast<int64_t>(std::log(kLargestNoise) / std::log(2 * spread));
    int64_t degree = 1;
    for (size_t j = 0; j < static_cast<size_t>(rank_); ++j) {
      const double wanted = std::max(1.5 * static_cast<double>(residuals_[j]) / kResidual, 1.0);
      const double position = std::max(values_[j] / half() - 1, 1 + 1e-6);
      const double least = std::acosh(wanted) / std::acosh(position);
      degree = std::max(degree, static_cast<int64_t>(std::ceil(std::min(least, 1e3))));
    }
    return std::min({degree, most, kMostDegree});
  }

  // q becomes T_d(A^T A / half - 1) q.
  void filter(int64_t degree) {
    const auto factor = static_cast<float>(1 / half());
    std::vector<float> scale(static_cast<size_t>(q_.cols));
    for (size_t j = 0; j < scale.size(); ++j) {
      scale[j] = static_cast<float>(values_[j] / half() - 1);
    }
    at_level<&combine_columns>(q_.values, scale.data(), y_.values, factor, q_.rows, q_.cols,
                               y_.values);
    chebyshev_steps(q_, y_, z_, static_cast<float>(half()), 2 * factor, degree,
                    [this](const FloatBlock& x, const FloatBlock& y) { apply(x, y); });
  }

  void store_found() {
    float* to = data_of<float>(t_.new_vectors);
    for (int64_t i = 0; i < kept_; ++i) {
      for (int64_t j = 0; j < c_; ++j) to[i * c_ + j] = q_.values[j * q_.cols + i];
      if (i < rank_) store_component(i, std::sqrt(values_[static_cast<size_t>(i)]));
    }
  }

  void store(const SvdResult& found) {
    float* to = data_of<float>(t_.new_vectors);
    std::fill_n(to, kept_ * c_, 0.0f);
    for (int64_t i = 0; i < rank_; ++i) {
      for (int64_t j = 0; j < c_; ++j) to[i * c_ + j] = static_cast<float>(found.vt(i, j));
      store_component(i, found.s[static_cast<size_t>(i)]);
    }
  }

  // The sign of a vector that is in its place, and what belongs to it.
  void store_component(int64_t i, double singular) {
    float* vector = data_of<float>(t_.new_vectors) + i * c_;
    const auto [lowest, highest] = std::minmax_element(vector, vector + c_);
    if (-*lowest > *highest) {
      for (int64_t j = 0; j < c_; ++j) vector[j] = -vector[j];
    }
    data_of<float>(t_.new_singular)[i] = static_cast<float>(singular);
    // Rows that are all alike vary in no direction.
    data_of<float>(t_.ratios)[i] =
        scatter_ == 0 ? 0.0f : static_cast<float>(singular * singular / scatter_);
    double cosine = 0;
    for (int64_t j = 0; t_.vectors && j < c_; ++j) {
      cosine += static_cast<double>(vector[j]) *
                static_cast<double>(data_of<float>(t_.vectors)[i * c_ + j]);
    }
    data_of<float>(t_.cosines)[i] = static_cast<float>(cosine);
  }

  PcaOperands t_;
  const Context* ctx_ = nullptr;
  Arena arena_;
  int64_t n_, c_, rank_, kept_;
  int64_t m_;                 // rows of A
  int64_t rows_, cols_, ld_;  // padded
  float* a_;
  double* sums_;
  float* mean_;
  double scatter_ = 0;
  FloatBlock q_, y_, z_;  // (C,b)
  FloatBlock across_;     // (b,C)
  FloatBlock image_, flipped_;
  double* wide_ = nullptr;
  float* weights_ = nullptr;
  std::vector<double> values_;    // of A^T A within q, descending
  std::vector<float> residuals_;  // of the wanted ones, over their values
};

}  // namespace

int32_t pca_updates_kernel(Context* ctx, const balora_pca_updates& o) {
  const auto count = static_cast<size_t>(o.count);
  int64_t bytes = 0;
  for (size_t i = 0; i < count; ++i) bytes = std::max(bytes, PcaUpdate(o.tasks[i]).bytes());
  side_by_side(ctx, count, bytes, [&](const Context* single, void* scratch, size_t i) {
    PcaUpdate(o.tasks[i], scratch).run(single);
  });
  return 0;
}

}  // namespace balora
