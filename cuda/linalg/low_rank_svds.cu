// randomized_svds: the leading singular triplets from products with A and A^T alone, after Halko,
// Martinsson and Tropp (2011) with niter power iterations, or to convergence of the captured energy
// by block Krylov (krylov.cuh), as kernels/cpu/linalg/krylov.h does. A is kept in f32 where its
// type is not f64, it is large and the numbers allow it (the CPU's conditions, chebyshev_svd.h),
// else in f64; bases and small problems are f64 in any case. Orthonormalisation follows every
// product, so nothing overflows, and A is scaled by a power of two.
//
// On paper, 4096 x 4096, 138 columns, one H100: a product is 4.6 GF, 0.1 ms in f32 without TF32 and
// the same in f64; a QR 0.3 ms (launches); 17 power iterations and the final SVD of order 138 (20
// ms) make 40 ms, so 224 layers take 10 s. To convergence a cycle is 80 ms, mostly the eigh of
// order 414. The host reads what decides: the norm first, a flag a QR, the values in the end.
#include "linalg/low_rank_svds.cuh"

#include <cmath>
#include <optional>

#include "linalg/krylov.cuh"
#include "linalg/qr.cuh"

namespace balora::cuda {
namespace {

constexpr int64_t kSmallestExtent = 128;  // from here on f32 will do
constexpr int64_t kDenseOrder = 96;       // up to here the dense SVD is as fast
constexpr double kSmallestSigma = 1e-3;   // of the first, for f32
constexpr double kSmallestRest = 0.05;    // |A - A_r| / |A|, for f32
constexpr int kCycles = 200, kCyclesF32 = 40;

constexpr int kThreads = 256;
constexpr int kMaxParts = 512;

// parts[block] = the largest |a|, or with `up` the sum of (up a)^2.
template <typename T>
__global__ void measure(const T* a, int64_t n, double up, double* parts) {
  BALORA_SHARED(double, scratch, kWarp + 1);
  double largest = 0, sum = 0;
  for (int64_t i = thread_index(); i < n; i += thread_count()) {
    const double value = static_cast<double>(load(a[i]));
    largest = Max()(fabs(value), largest);
    sum += value * up * (value * up);
  }
  const double all =
      up == 0 ? block_reduce(largest, 0.0, scratch, Max()) : block_reduce(sum, 0.0, scratch);
  if (threadIdx.x == 0) parts[blockIdx.x] = all;
}

template <typename T, typename W>
__global__ void scale_elements(const T* from, int64_t n, double up, W* to) {
  for (int64_t i = thread_index(); i < n; i += thread_count()) {
    to[i] = static_cast<W>(static_cast<double>(load(from[i])) * up);
  }
}

__global__ void scale_values(const double* from, int64_t n, double factor, double* to) {
  for (int64_t i = thread_index(); i < n; i += thread_count()) to[i] = from[i] * factor;
}

std::vector<double> measured(Scratch& scratch, const View& a, double up) {
  const int64_t n = view_numel(a);
  const int64_t parts = std::clamp<int64_t>(ceil_div(n, 8 * kThreads), 1, kMaxParts);
  const Buffer<double> out(scratch, parts);
  dispatch_float(a.dtype, [&]<typename T>() {
    launch(scratch.ctx(), "randomized_svd", {dim3(static_cast<unsigned>(parts)), dim3(kThreads)},
           measure<T>, data_of<T>(&a), n, up, out.data());
  });
  return host_values(scratch.ctx(), out.data(), parts);
}

struct Norm {
  double up, down;  // powers of two
  double squares;   // |up A|_F^2
};

Norm norm_of(Scratch& scratch, const View& a) {
  double largest = 0, squares = 0;
  for (const double part : measured(scratch, a, 0)) {
    if (!std::isfinite(part)) {
      throw std::runtime_error("randomized_svd: the matrix holds NaN or infinity");
    }
    largest = std::max(largest, part);
  }
  const int exponent = largest > 0 ? std::clamp(std::ilogb(largest), -1000, 1000) : 0;
  const double up = std::ldexp(1.0, -exponent);
  for (const double part : measured(scratch, a, up)) squares += part;
  return {up, std::ldexp(1.0, exponent), squares};
}

// A (m,n), m >= n: the matrix or its transpose, scaled, in f32 or f64.
class Source {
 public:
  Source(Scratch& scratch, const View& w, double up, int32_t dtype)
      : scratch_(scratch),
        dtype_(dtype),
        rows_(w.shape[0]),
        cols_(w.shape[1]),
        data_(scratch, rows_ * cols_ * element_size(dtype)) {
    dispatch_float(w.dtype, [&]<typename T>() {
      const auto fill = [&]<typename W>(W* to) {
        launch(scratch.ctx(), "randomized_svd", elements(rows_ * cols_), scale_elements<T, W>,
               data_of<T>(&w), rows_ * cols_, up, to);
      };
      if (dtype == BALORA_F64) {
        fill(static_cast<double*>(data()));
      } else if constexpr (!std::is_same_v<T, double>) {
        fill(static_cast<float*>(data()));
      }
    });
  }

  bool flipped() const { return rows_ < cols_; }
  int64_t m() const { return std::max(rows_, cols_); }
  int64_t n() const { return std::min(rows_, cols_); }

  Dense times(const Dense& x) const { return multiplied(x, m(), flipped()); }              // A X
  Dense transposed_times(const Dense& x) const { return multiplied(x, n(), !flipped()); }  // A^T X

 private:
  void* data() const { return data_.data(); }

  Dense multiplied(const Dense& x, int64_t rows, bool transpose) const {
    Context* ctx = scratch_.ctx();
    Dense y(scratch_, rows, x.cols);
    const GemmShape shape{rows, x.cols, x.rows};
    const GemmOperand a{data(), dtype_, cols_, transpose};
    if (dtype_ == BALORA_F64) {
      gemm(ctx, shape, 1, a, {x.data(), BALORA_F64, x.cols}, 0, {y.data(), BALORA_F64, y.cols});
      return y;
    }
    const Buffer<float> narrow(scratch_, x.size()), image(scratch_, y.size());
    convert_matrix(ctx, x.rows, x.cols, {x.data(), BALORA_F64, x.cols},
                   {narrow.data(), BALORA_F32, x.cols});
    gemm(ctx, shape, 1, a, {narrow.data(), BALORA_F32, x.cols}, 0,
         {image.data(), BALORA_F32, y.cols});
    convert_matrix(ctx, y.rows, y.cols, {image.data(), BALORA_F32, y.cols},
                   {y.data(), BALORA_F64, y.cols});
    return y;
  }

  Scratch& scratch_;
  int32_t dtype_;
  int64_t rows_, cols_;
  Buffer<unsigned char> data_;
};

// Columns that span the row space which niter power iterations find, orthonormal. Each is a power
// of A^T A; the last product with A is finish()'s.
Dense power_basis(Scratch& scratch, const Source& a, const LowRankSearch& wanted) {
  const int64_t width = std::min(a.n(), wanted.rank + wanted.oversample);
  Dense q = std::move(thin_qr(scratch, normal_matrix(scratch, a.n(), width, wanted.seed)).q);
  for (int64_t i = 0; i <= wanted.niter; ++i) {
    const Dense image = std::move(thin_qr(scratch, a.times(q)).q);
    q = std::move(thin_qr(scratch, a.transposed_times(image)).q);
  }
  return q;
}

// The same to convergence; nothing where the energy does not settle within max_cycles.
std::optional<Dense> converged_basis(Scratch& scratch, const Source& a, const LowRankSearch& wanted,
                                     double total, int max_cycles) {
  CapturedEnergy energy(wanted.rank, total);
  KrylovOptions options{std::min(a.n(), wanted.rank + wanted.oversample)};
  options.blocks = 2;
  options.seed = wanted.seed;
  options.max_cycles = max_cycles;
  bool converged = false;
  RitzPairs pairs = block_krylov(
      scratch, a.n(), options, [&](const Dense& x) { return a.transposed_times(a.times(x)); },
      [&](const RitzPairs& pairs) { return energy.converged(pairs.values); }, &converged,
      "randomized_svd");
  if (!converged) return std::nullopt;
  return std::move(pairs.vectors);
}

// The SVD of A Q Q^T, as factors of the matrix that the source reads.
SvdFactors finish(Scratch& scratch, const Source& a, const Dense& q, const Norm& norm) {
  SvdFactors core = thin_svd(scratch, a.times(q), true, "randomized_svd");
  Dense vt = product_nt(scratch, core.vt, q), s(scratch, core.s.rows, 1);
  launch(scratch.ctx(), "randomized_svd", elements(s.rows), scale_values, core.s.data(), s.rows,
         norm.down, s.data());
  if (a.flipped()) {
    return {transposed(scratch, vt), std::move(s), transposed(scratch, core.u)};
  }
  return {std::move(core.u), std::move(s), std::move(vt)};
}

// In f32, where chebyshev_svd.h would; nothing where its numbers are too small for that.
std::optional<SvdFactors> in_f32(Scratch& scratch, const View& w, const Norm& norm,
                                 const LowRankSearch& wanted) {
  const int64_t columns = ceil_div(wanted.rank + wanted.oversample, 32) * 32;
  const int64_t n = std::min(w.shape[0], w.shape[1]);
  if (w.dtype == BALORA_F64 || n < kSmallestExtent || 2 * columns > n) return std::nullopt;
  const Source a(scratch, w, norm.up, BALORA_F32);
  std::optional<Dense> q = wanted.niter < 0
                               ? converged_basis(scratch, a, wanted, norm.squares, kCyclesF32)
                               : power_basis(scratch, a, wanted);
  if (!q) return std::nullopt;
  SvdFactors found = finish(scratch, a, *q, norm);
  const std::vector<double> s = host_values(scratch.ctx(), found.s.data(), wanted.rank);
  double captured = 0;
  for (const double value : s) captured += value * norm.up * (value * norm.up);
  const double rest = std::sqrt(std::max(0.0, 1 - captured / norm.squares));
  if (!(s.back() > kSmallestSigma * s.front()) || !(rest > kSmallestRest)) return std::nullopt;
  return found;
}

SvdFactors in_f64(Scratch& scratch, const View& w, const Norm& norm, const LowRankSearch& wanted) {
  const int64_t n = std::min(w.shape[0], w.shape[1]);
  if (wanted.niter < 0 && (n <= kDenseOrder || (wanted.rank + wanted.oversample) * 5 > n)) {
    return thin_svd(scratch, widened(scratch, w), true, "randomized_svd");
  }
  const Source a(scratch, w, norm.up, BALORA_F64);
  if (wanted.niter >= 0) return finish(scratch, a, power_basis(scratch, a, wanted), norm);
  std::optional<Dense> q = converged_basis(scratch, a, wanted, norm.squares, kCycles);
  if (!q) throw std::runtime_error("randomized_svd: the captured energy did not converge");
  return finish(scratch, a, *q, norm);
}

// Products keep f32's 24 bits here: the bound on the energy has no room for TF32.
class FullPrecision {
 public:
  explicit FullPrecision(Context* ctx) : ctx_(ctx), before_(ctx->allow_tf32) {
    ctx->allow_tf32 = 0;
  }
  ~FullPrecision() { ctx_->allow_tf32 = before_; }

 private:
  Context* ctx_;
  int32_t before_;
};

void decompose(Scratch& scratch, const SvdOperands& task, int64_t niter, int64_t oversample) {
  const int64_t rank = task.s->shape[0];
  const SvdFactors found = leading_triplets(scratch, *task.a, {rank, niter, oversample, task.seed});
  const Dense left(scratch, found.u.rows, rank);
  convert_matrix(scratch.ctx(), left.rows, rank, {found.u.data(), BALORA_F64, found.u.cols},
                 {left.data(), BALORA_F64, rank});
  store_values(scratch.ctx(), left.data(), *task.u);
  store_values(scratch.ctx(), found.s.data(), *task.s);
  store_values(scratch.ctx(), found.vt.data(), *task.vt);  // its leading rows
}

}  // namespace

SvdFactors leading_triplets(Scratch& scratch, const View& a, const LowRankSearch& search) {
  const FullPrecision full(scratch.ctx());
  const Norm norm = norm_of(scratch, a);
  std::optional<SvdFactors> found = in_f32(scratch, a, norm, search);
  return found ? std::move(*found) : in_f64(scratch, a, norm, search);
}

// One matrix after the other: each fills the device.
int32_t randomized_svds_kernel(Context* ctx, const balora_randomized_svds& o) {
  Scratch scratch(ctx);
  for (int32_t i = 0; i < o.count; ++i) decompose(scratch, o.tasks[i], o.niter, o.oversample);
  return 0;
}

}  // namespace balora::cuda
