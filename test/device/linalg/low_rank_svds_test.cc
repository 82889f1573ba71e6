// randomized_svd on the device: captured energy against the optimum and against plain power
// iterations, where f32 is taken and where it must not be.
#include "kernels/cpu/linalg/krylov.h"
#include "support/device_test.h"
#include "support/matrices.h"
#include "support/workspace_spy.h"

namespace {

using namespace balora;
using namespace balora::test;

double frobenius(const Matrix& a) {
  double sum = 0;
  for (const double value : a.values) sum += value * value;
  return std::sqrt(sum);
}

// |A - U diag(s) Vt| / |A|
double relative_error(const Matrix& a, const SvdResult& r) {
  Matrix rest = multiply(scaled_columns(r.u, r.s), r.vt);
  for (size_t i = 0; i < a.values.size(); ++i) rest.values[i] -= a.values[i];
  return frobenius(rest) / frobenius(a);
}

double optimum(const Matrix& a, int64_t rank) {
  Context ctx{};
  ctx.num_threads = 1;
  const SvdResult full = thin_svd(&ctx, a);
  double left = 0;
  for (size_t i = static_cast<size_t>(rank); i < full.s.size(); ++i) left += full.s[i] * full.s[i];
  return std::sqrt(left) / frobenius(a);
}

struct Task {
  int32_t dtype = BALORA_F64;
  int64_t rank = 8, niter = -1, oversample = 8;
  uint64_t seed = 7;
  enum { kEither, kF32, kF64 } precision = kEither;  // that A must be kept in
};

// The factors found, and into *rounded the matrix as its dtype holds it.
SvdResult solve(const Matrix& a, const Task& task, Matrix* rounded) {
  DeviceTest t;
  const int64_t m = a.rows, n = a.cols;
  const int32_t wide = task.dtype == BALORA_F64 ? BALORA_F64 : BALORA_F32;
  const Array x = t.of_values(task.dtype, {m, n}, a.values), u = t.make(wide, {m, task.rank}),
              s = t.make(wide, {task.rank}), vt = t.make(wide, {task.rank, n});
  const WorkspaceSpy spy(t);
  const int32_t status = t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
    ctx->allow_tf32 = 1;  // must change nothing
    const SvdOperands operands{view(x), view(u), view(s), view(vt), task.seed};
    return call(
        k.randomized_svds, ctx,
        {.tasks = &operands, .count = 1, .niter = task.niter, .oversample = task.oversample});
  });
  REQUIRE_MESSAGE(status == 0, t.error());
  REQUIRE_MESSAGE(t.synchronize() == 0, t.error());
  CHECK(t.device_context()->allow_tf32 == 1);
  const int64_t in_f64 = m * n * static_cast<int64_t>(sizeof(double));
  if (task.precision != Task::kEither) {
    CHECK((spy.largest() >= in_f64) == (task.precision == Task::kF64));
  }
  *rounded = matrix_of(x->host_values(), m, n);
  SvdResult out{matrix_of(u->from_device(), m, task.rank), s->from_device(),
                matrix_of(vt->from_device(), task.rank, n)};
  CHECK(std::is_sorted(out.s.rbegin(), out.s.rend()));
  const double exact = task.dtype == BALORA_F64 ? 1e-12 : 3e-6;
  CHECK(orthonormality(out.u) < exact);
  CHECK(orthonormality(transposed(out.vt)) < exact);
  return out;
}

void check_converged(const Matrix& a, const Task& task) {
  CAPTURE(a.rows);
  CAPTURE(a.cols);
  CAPTURE(task.dtype);
  Matrix rounded;
  const SvdResult found = solve(a, task, &rounded);
  CHECK(relative_error(rounded, found) <= optimum(rounded, task.rank) * (1 + 1e-5) + 1e-6);
}

Matrix weight_like(int64_t m, int64_t n, uint64_t seed) {  // a few large values, a slow decay
  std::vector<double> sigma;
  for (int64_t i = 0; i < std::min(m, n); ++i) {
    const auto at = static_cast<double>(i);
    sigma.push_back(3.0 / (1.0 + at) + 1.0 - 0.0015 * at);
  }
  return with_values(m, n, sigma, seed);
}

TEST_CASE("randomized_svd on the device: to convergence in f64, dense and Krylov") {
  for (const double ratio : {0.5, 0.95, 0.999}) {
    check_converged(decaying(105, 130, ratio, 10), {BALORA_F64, 6, -1, 6});
  }
  check_converged(weight_like(120, 101, 11), {BALORA_F64, 4, -1, 6});
  check_converged(random_matrix(40, 23, 12), {});
  check_converged(random_matrix(23, 40, 13), {});
  check_converged(random_matrix(1, 9, 14), {BALORA_F64, 1});
  check_converged(random_matrix(5, 9, 15), {BALORA_F64, 5});
}

TEST_CASE("randomized_svd on the device: to convergence in f32, bf16 and f16") {
  const Matrix a = weight_like(140, 131, 21);
  for (const int32_t dtype : {BALORA_F32, BALORA_BF16, BALORA_F16}) {
    check_converged(a, {dtype, 6, -1, 6, 7, Task::kF32});
  }
  check_converged(transposed(a), {BALORA_F32, 6, -1, 6, 7, Task::kF32});
  check_converged(times(a, 1e30), {BALORA_F32, 6, -1, 6, 7, Task::kF32});
  check_converged(times(a, 1e-30), {BALORA_F32, 6, -1, 6, 7, Task::kF32});
}

TEST_CASE("randomized_svd on the device: power iterations capture what the CPU's do") {
  Context ctx{};
  ctx.num_threads = 1;
  for (const int32_t dtype : {BALORA_F64, BALORA_F32}) {
    for (const int64_t niter : {0, 1, 4}) {
      const Matrix a = weight_like(129, 150, 31);
      Matrix rounded;
      const SvdResult found = solve(
          a, {dtype, 6, niter, 6, 7, dtype == BALORA_F32 ? Task::kF32 : Task::kF64}, &rounded);
      const SvdResult plain =
          randomized_svd(&ctx, rounded.ref(), rounded.rows, rounded.cols, 6, niter, 6, 7);
      // The same test matrix, so the same subspace: nearer than another seed's.
      CHECK(std::abs(relative_error(rounded, found) - relative_error(rounded, plain)) < 1e-6);
      CHECK(std::abs(found.s[0] / plain.s[0] - 1) < (dtype == BALORA_F64 ? 1e-12 : 1e-6));
    }
  }
}

TEST_CASE("randomized_svd on the device: f32 gives way where its numbers are too small") {
  check_converged(decaying(130, 140, 0.3, 41),
                  {BALORA_F32, 8, -1, 6, 7, Task::kF64});  // sigma_8 = 2e-4
  check_converged(decaying(130, 140, 0.05, 43),
                  {BALORA_F32, 4, -1, 6, 7, Task::kF64});  // nothing is left
  std::vector<double> deficient(130, 0.0);
  for (size_t i = 0; i < 5; ++i) deficient[i] = 1;
  check_converged(with_values(130, 140, deficient, 45), {BALORA_F32, 4, -1, 6, 7, Task::kF32});
  check_converged(with_values(130, 140, deficient, 47), {BALORA_F32, 7, -1, 6, 7, Task::kF64});
  check_converged(with_values(130, 140, deficient, 49), {BALORA_F64, 7, -1, 6});
}

TEST_CASE("randomized_svd on the device: zero, and the same bits for the same seed") {
  Matrix rounded;
  for (const int32_t dtype : {BALORA_F64, BALORA_F32}) {
    for (const int64_t niter : {-1, 2}) {
      for (const double s : solve(Matrix(130, 133), {dtype, 3, niter, 6}, &rounded).s) {
        CHECK(s == 0);
      }
    }
  }
  const Matrix a = random_matrix(30, 21, 51);
  const SvdResult first = solve(a, {BALORA_F64, 4, 1, 3, 5}, &rounded);
  CHECK(first.u.values == solve(a, {BALORA_F64, 4, 1, 3, 5}, &rounded).u.values);
  CHECK(first.u.values != solve(a, {BALORA_F64, 4, 1, 3, 6}, &rounded).u.values);
}

TEST_CASE("randomized_svd on the device: NaN and infinity are a named failure") {
  for (const int64_t niter : {-1, 2}) {
    for (const double bad : {std::nan(""), HUGE_VAL}) {
      DeviceTest t;
      const Array x = t.random<float>({20, 30}), u = t.empty<float>({20, 3}),
                  s = t.empty<float>({3}), vt = t.empty<float>({3, 30});
      x->set(70, bad);
      CHECK(t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
        const SvdOperands operands{view(x), view(u), view(s), view(vt), 1};
        return call(k.randomized_svds, ctx,
                    {.tasks = &operands, .count = 1, .niter = niter, .oversample = 4});
      }) != 0);
      CHECK(t.error() == "randomized_svd: the matrix holds NaN or infinity");
    }
  }
}

}  // namespace
