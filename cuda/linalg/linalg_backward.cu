// Gradients of qr, eigh and svd, in f64 from factors of any float dtype, with the CPU's formulas
// (native/ops/linalg/*.cc): gemm() for the products, one thread an element for the rest. Nothing is
// read on the host.
#include "linalg/dense.cuh"
#include "linalg/qr.cuh"

namespace balora::cuda {
namespace {

// Above the diagonal what is below it.
__global__ void mirror_lower(double* a, int64_t n) {
  for (int64_t at = thread_index(); at < n * n; at += thread_count()) {
    const int64_t i = at / n, j = at % n;
    if (i < j) a[at] = a[j * n + i];
  }
}

// Columns in reverse, and for `upper` the transpose reversed on both sides: X R^-T is then a
// division by an upper triangle.
__global__ void reverse_columns(const double* from, int64_t rows, int64_t cols, double* to) {
  for (int64_t at = thread_index(); at < rows * cols; at += thread_count()) {
    to[at] = from[at / cols * cols + cols - 1 - at % cols];
  }
}
__global__ void reverse_transposed(const double* from, int64_t n, double* to) {
  for (int64_t at = thread_index(); at < n * n; at += thread_count()) {
    to[at] = from[(n - 1 - at % n) * n + n - 1 - at / n];
  }
}

Dense times_inverse_transposed(Scratch& scratch, const Dense& x, const Dense& r) {
  Context* ctx = scratch.ctx();
  const Dense flipped(scratch, x.rows, x.cols), upper(scratch, r.rows, r.cols);
  launch(ctx, "qr_backward", elements(x.size()), reverse_columns, x.data(), x.rows, x.cols,
         flipped.data());
  launch(ctx, "qr_backward", elements(r.size()), reverse_transposed, r.data(), r.rows,
         upper.data());
  divide_by_upper(ctx, flipped.data(), x.rows, upper);
  Dense out(scratch, x.rows, x.cols);
  launch(ctx, "qr_backward", elements(x.size()), reverse_columns, flipped.data(), x.rows, x.cols,
         out.data());
  return out;
}

// inner (n,n), in place: off the diagonal divided by the gap of the values, 0 where there is none
// (and on it); dvalues, if any, onto the diagonal.
__global__ void divide_by_gaps(double* inner, const double* values, const double* dvalues,
                               int64_t n) {
  for (int64_t at = thread_index(); at < n * n; at += thread_count()) {
    const int64_t i = at / n, j = at % n;
    const double gap = values[j] - values[i];
    const double quotient = gap == 0 ? 0 : inner[at] / gap;
    inner[at] = i == j && dvalues ? quotient + dvalues[i] : quotient;
  }
}

// Adds E o (X - X^T), E_ij = 1 / (s_j^2 - s_i^2), 0 where they are equal, with column j (of_rows:
// row i) times s, to core.
__global__ void add_rotation(const double* x, const double* s, int64_t k, bool of_rows,
                             double* core) {
  for (int64_t at = thread_index(); at < k * k; at += thread_count()) {
    const int64_t i = at / k, j = at % k;
    const double a = s[i], b = s[j];
    const double rotation = a == b ? 0 : (x[at] - x[j * k + i]) / ((b - a) * (b + a));
    core[at] += rotation * (of_rows ? a : b);
  }
}

__global__ void set_diagonal(double* core, const double* d, int64_t k) {
  for (int64_t i = thread_index(); i < k; i += thread_count()) core[i * k + i] = d[i];
}

// Columns over s, 0 where s is not positive.
__global__ void divide_columns(double* a, int64_t rows, int64_t k, const double* s) {
  for (int64_t at = thread_index(); at < rows * k; at += thread_count()) {
    const double value = s[at % k];
    a[at] = value > 0 ? a[at] * (1 / value) : a[at] * 0;
  }
}

struct SvdBackward {
  Scratch& scratch;
  Dense u, s, vt;
  Dense core, outside;  // (K,K), (M,N)

  // g is the gradient of f (rows,K), u or v. Adds its part inside of f's span to the core and
  // returns the part outside, over s.
  Dense split(const Dense& f, Dense g, bool right) {
    Context* ctx = scratch.ctx();
    const Dense inner = product_tn(scratch, f, g);
    launch(ctx, "svd_backward", elements(core.size()), add_rotation, inner.data(), s.data(),
           core.rows, right, core.data());
    multiply(ctx, {g.rows, g.cols, f.cols}, -1, {f.data(), f.cols}, {inner.data(), inner.cols}, 1,
             g.data(), g.cols);
    launch(ctx, "svd_backward", elements(g.size()), divide_columns, g.data(), g.rows, g.cols,
           s.data());
    return g;
  }

  void add_outside(const Dense& a, const Factor& b) {
    multiply(scratch.ctx(), {outside.rows, outside.cols, a.cols}, 1, {a.data(), a.cols}, b, 1,
             outside.data(), outside.cols);
  }
};

}  // namespace

// The gradient of qr:
//   M = R dR^T - dQ^T Q
//   da = (dq + Q sym(M)) R^-T
int32_t qr_backward_kernel(Context* ctx, const balora_qr_backward& o) {
  Scratch scratch(ctx);
  const Dense mq = widened(scratch, *o.q), mr = widened(scratch, *o.r);
  const int64_t n = mr.rows;
  const Dense gradient = o.dq ? widened(scratch, *o.dq) : zeros(scratch, mq.rows, mq.cols);
  const Dense m = o.dr ? product_nt(scratch, mr, widened(scratch, *o.dr)) : zeros(scratch, n, n);
  if (o.dq) {
    multiply(ctx, {n, n, mq.rows}, -1, {gradient.data(), n, true}, {mq.data(), n}, 1, m.data(), n);
  }
  launch(ctx, "qr_backward", elements(m.size()), mirror_lower, m.data(), n);
  multiply(ctx, {mq.rows, n, n}, 1, {mq.data(), n}, {m.data(), n}, 1, gradient.data(), n);
  store_values(ctx, times_inverse_transposed(scratch, gradient, mr).data(), *o.da);
  return 0;
}

int32_t eigh_backward_kernel(Context* ctx, const balora_eigh_backward& o) {
  Scratch scratch(ctx);
  const Dense v = widened(scratch, *o.vectors), w = widened(scratch, *o.values);
  const Dense dw = o.dvalues ? widened(scratch, *o.dvalues) : Dense();
  const Dense inner = o.dvectors ? product_tn(scratch, v, widened(scratch, *o.dvectors))
                                 : zeros(scratch, v.rows, v.cols);
  launch(ctx, "eigh_backward", elements(inner.size()), divide_by_gaps, inner.data(), w.data(),
         dw.data(), v.rows);
  const Dense full = product_nt(scratch, product(scratch, v, inner), v);
  symmetrise(ctx, full);
  store_values(ctx, full.data(), *o.da);
  return 0;
}

int32_t svd_backward_kernel(Context* ctx, const balora_svd_backward& o) {
  Scratch scratch(ctx);
  const int64_t m = o.u->shape[0], k = o.u->shape[1], n = o.vt->shape[1];
  SvdBackward b{.scratch = scratch,
                .u = widened(scratch, *o.u),
                .s = widened(scratch, *o.s),
                .vt = widened(scratch, *o.vt),
                .core = zeros(scratch, k, k),
                .outside = zeros(scratch, m, n)};
  if (o.ds) {
    const Dense d = widened(scratch, *o.ds);
    launch(ctx, "svd_backward", elements(k), set_diagonal, b.core.data(), d.data(), k);
  }
  if (o.du) {
    const Dense normal = b.split(b.u, widened(scratch, *o.du), false);
    b.add_outside(normal, {b.vt.data(), n});
  }
  if (o.dvt) {
    const Dense v = transposed(scratch, b.vt);
    const Dense normal = b.split(v, transposed(scratch, widened(scratch, *o.dvt)), true);
    b.add_outside(b.u, {normal.data(), k, true});
  }
  b.add_outside(product(scratch, b.u, b.core), {b.vt.data(), n});
  store_values(ctx, b.outside.data(), *o.da);
  return 0;
}

}  // namespace balora::cuda
