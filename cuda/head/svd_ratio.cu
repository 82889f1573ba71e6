#include "head/svd_ratio.cuh"

namespace balora::cuda {
namespace {

constexpr double kRankTolerance = 1e-6;

// One thread: a few dozen values, or as many as the matrix has rows for the nuclear norm.
__global__ void ratio_of(const double* squares, int64_t count, const double* squared_norm,
                         int64_t k, bool nuclear, double* value, double* weights, double* shift) {
  *value = *shift = 0;
  // Eigenvalues at the rounding of the Gram matrix are zero.
  const double noise = count ? squares[0] * static_cast<double>(count) * 0x1p-52 : 0;
  const auto sigma = [&](int64_t i) { return squares[i] > noise ? sqrt(squares[i]) : 0.0; };
  double sum = 0, all = 0;
  for (int64_t i = 0; i < count; ++i) {
    weights[i] = 0;
    if (i < k) sum += sigma(i);
    all += sigma(i);
  }
  const double norm = nuclear ? all : sqrt(*squared_norm > 0 ? *squared_norm : 0.0);
  if (!(norm > 0) || count == 0) return;
  *value = -sum / norm;
  *shift = nuclear ? 0.0 : sum / (norm * norm * norm);
  for (int64_t i = 0; i < count; ++i) {
    if (sigma(i) <= kRankTolerance * sigma(0)) continue;
    double slope = i < k ? -1 / norm : 0.0;
    if (nuclear) slope += sum / (norm * norm);
    weights[i] = slope / sigma(i);
  }
}

__global__ void scale_elements(double* a, int64_t count, int64_t cols, const double* weights) {
  for (int64_t at = thread_index(); at < count; at += thread_count()) a[at] *= weights[at / cols];
}

__global__ void multiply_elements(const double* a, int64_t count, const double* factor,
                                  double* out) {
  for (int64_t at = thread_index(); at < count; at += thread_count()) out[at] = *factor * a[at];
}

constexpr int kParts = 256;

// Block p adds its elements, then one block the parts. step: between elements of a.
__global__ void add_products(const double* a, const double* b, int64_t count, int64_t step,
                             double* parts) {
  BALORA_SHARED(double, scratch, kWarp + 1);
  double sum = 0;
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    sum += a[i * step] * (b ? b[i * step] : 1.0);
  }
  sum = block_reduce(sum, 0.0, scratch);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

struct Products {
  const double* a;
  const double* b = nullptr;  // null: ones
  int64_t count;
  int64_t step = 1;  // from one element to the next
};

Dense sum_elements(Scratch& scratch, const Products& of) {
  const Dense parts(scratch, kParts, 1);
  Dense total(scratch, 1, 1);
  const double* const none = nullptr;
  launch(scratch.ctx(), "svd_ratio", {dim3(kParts), dim3(256)}, add_products, of.a, of.b, of.count,
         of.step, parts.data());
  launch(scratch.ctx(), "svd_ratio", {dim3(1), dim3(kParts)}, add_products, parts.data(), none,
         int64_t{kParts}, int64_t{1}, total.data());
  return total;
}

}  // namespace

SvdRatio svd_ratio(Scratch& scratch, const Dense& squares, const Dense& squared_norm, int64_t k,
                   bool nuclear, double* value) {
  SvdRatio ratio = {Dense(scratch, squares.rows, 1), Dense(scratch, 1, 1)};
  launch(scratch.ctx(), "svd_ratio", {dim3(1), dim3(1)}, ratio_of, squares.data(), squares.rows,
         squared_norm.data(), k, nuclear, value, ratio.weights.data(), ratio.shift.data());
  return ratio;
}

Dense ratio_gradient(Scratch& scratch, const Dense& u, const SvdRatio& ratio, const Dense& p) {
  const Dense inner = product_tn(scratch, u, p);
  scale_rows(scratch.ctx(), inner, ratio.weights);
  Dense out = times_shift(scratch, p, ratio.shift);
  multiply(scratch.ctx(), {p.rows, p.cols, u.cols}, 1, {u.data(), u.cols},
           {inner.data(), inner.cols}, 1, out.data(), out.cols);
  return out;
}

void scale_rows(Context* ctx, const Dense& a, const Dense& weights) {
  launch(ctx, "svd_ratio", elements(a.size()), scale_elements, a.data(), a.size(), a.cols,
         weights.data());
}

Dense times_shift(Scratch& scratch, const Dense& a, const Dense& shift) {
  Dense out(scratch, a.rows, a.cols);
  launch(scratch.ctx(), "svd_ratio", elements(a.size()), multiply_elements, a.data(), a.size(),
         shift.data(), out.data());
  return out;
}

Dense sum_of_products(Scratch& scratch, const Dense& a, const Dense& b) {
  return sum_elements(scratch, {.a = a.data(), .b = b.data(), .count = a.size()});
}

Dense trace_of(Scratch& scratch, const Dense& a) {
  return sum_elements(scratch, {.a = a.data(), .count = a.rows, .step = a.cols + 1});
}

}  // namespace balora::cuda
