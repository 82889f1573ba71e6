// The decompositions on the device by their defining properties, as the CPU's are tested in
// test/native/kernels/linalg/linalg_test.cc; values against the CPU's.
#include "support/device_test.h"
#include "support/matrices.h"
#include "support/workspace_spy.h"

namespace {

using namespace balora;
using namespace balora::test;

// ---- eigh ---------------------------------------------------------------------------------------

void check_eigh(Matrix a) {
  const int64_t n = a.rows;
  CAPTURE(n);
  DeviceTest t;
  const Array x = t.values<double>({n, n}, a.values), w = t.empty<double>({n}),
              v = t.empty<double>({n, n}), only = t.empty<double>({n});
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = i + 1; j < n; ++j) x->set(i * n + j, 7);  // the lower triangle is read
  }
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.eigh, ctx, {.a = view(x), .values = view(w), .vectors = view(v)}) |
           call(k.eigh, ctx, {.a = view(x), .values = view(only)});
  });
  const std::vector<double> values = w->from_device();
  CHECK(values == only->from_device());
  const Matrix vectors = matrix_of(v->from_device(), n, n);
  const double scale = std::max(largest(a), 1e-300), size = static_cast<double>(n);
  CHECK(std::is_sorted(values.begin(), values.end()));
  CHECK(orthonormality(vectors) < 1e-14 * (4 + size));
  CHECK(max_difference(multiply(a, vectors), scaled_columns(vectors, values)) <=
        2e-15 * (4 + size) * scale);
  for (int64_t i = 0; i < n; ++i) {
    CHECK(std::abs(values[static_cast<size_t>(i)] - w->host(i)) <= 1e-15 * (4 + size) * scale);
  }
}

Matrix symmetric(int64_t n, int64_t rank, uint64_t seed) {
  const Matrix root = random_matrix(rank, n, seed);
  return multiply(transposed(root), root);
}

Matrix indefinite(int64_t n, uint64_t seed) {
  Matrix a = random_matrix(n, n, seed);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < i; ++j) a(j, i) = a(i, j);
  }
  return a;
}

TEST_CASE("eigh on the device: one block of threads, every kind of matrix") {
  check_eigh(symmetric(1, 1, 1));
  check_eigh(indefinite(2, 2));
  check_eigh(indefinite(3, 3));
  check_eigh(symmetric(31, 31, 4));
  check_eigh(symmetric(33, 12, 5));  // rank 12
  check_eigh(indefinite(64, 6));
  check_eigh(Matrix(9, 9));  // zero
  std::vector<double> clustered(20, 1.0);
  for (size_t i = 0; i < 10; ++i) clustered[i] = 1 + 1e-13 * static_cast<double>(i);
  check_eigh(designed(clustered, 7));
  for (const double size : {1e-200, 1e200}) {
    Matrix a = indefinite(5, 8);
    for (double& value : a.values) value *= size;
    check_eigh(a);
  }
}

TEST_CASE("eigh on the device: pairs of blocks") {
  check_eigh(indefinite(65, 9));
  check_eigh(symmetric(81, 40, 10));
  std::vector<double> graded;
  for (int i = 0; i < 70; ++i) graded.push_back(std::pow(0.5, i));
  check_eigh(designed(graded, 12));
}

TEST_CASE("eigh on the device: order 130") {
  check_eigh(symmetric(130, 130, 11));
}

TEST_CASE("eigh on the device: f32 and 16-bit matrices are rounded once") {
  for (const int32_t dtype : {BALORA_F32, BALORA_BF16, BALORA_F16}) {
    DeviceTest t;
    const Matrix a = indefinite(13, 3);
    const Array x = t.of_values(dtype, {13, 13}, a.values), v = t.make(dtype, {13, 13});
    const Array w = t.empty<float>({13});
    t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      return call(k.eigh, ctx, {.a = view(x), .values = view(w), .vectors = view(v)});
    });
    t.check_close(w, 1e-7);
  }
}

TEST_CASE("eigh on the device: NaN and infinity end in a named failure") {
  for (const int64_t n : {int64_t{5}, int64_t{70}}) {
    for (const double bad : {std::nan(""), HUGE_VAL}) {
      DeviceTest t;
      const Array x = t.random<double>({n, n}), w = t.empty<double>({n}),
                  v = t.empty<double>({n, n});
      x->set(n, bad);
      CHECK(t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
        return call(k.eigh, ctx, {.a = view(x), .values = view(w), .vectors = view(v)});
      }) == 0);
      CHECK(t.synchronize() != 0);
      CHECK(t.error() == "eigh: the matrix holds NaN or infinity");
      CHECK(std::isnan(w->from_device()[0]));
    }
  }
}

// ---- qr -----------------------------------------------------------------------------------------

void check_qr(const Matrix& a, bool same_r = false) {
  const int64_t m = a.rows, n = a.cols, k = std::min(m, n);
  CAPTURE(m);
  CAPTURE(n);
  DeviceTest t;
  const Array x = t.values<double>({m, n}, a.values), q = t.empty<double>({m, k}),
              r = t.empty<double>({k, n});
  t.both([&](const KernelTable& table, Context* ctx, const auto& view) {
    return call(table.qr, ctx, {.a = view(x), .q = view(q), .r = view(r)});
  });
  const Matrix mq = matrix_of(q->from_device(), m, k), mr = matrix_of(r->from_device(), k, n);
  CHECK(orthonormality(mq) < 1e-13 * static_cast<double>(m));
  CHECK(max_difference(multiply(mq, mr), a) <= 1e-14 * static_cast<double>(n) * largest(a));
  for (int64_t i = 0; i < k; ++i) {
    CHECK(mr(i, i) >= 0);
    for (int64_t j = 0; j < i; ++j) CHECK(mr(i, j) == 0);
  }
  if (same_r) t.check_close(r, 1e-12 * largest(a));
}

TEST_CASE("qr on the device: Cholesky's way, Householder's for what it cannot do") {
  check_qr(random_matrix(90, 31, 1), true);
  check_qr(random_matrix(130, 70, 2), true);  // several panels
  check_qr(random_matrix(33, 33, 3), true);
  check_qr(random_matrix(7, 20, 4), true);  // wide
  check_qr(random_matrix(1, 1, 5), true);
  check_qr(random_matrix(1, 9, 6), true);
  check_qr(random_matrix(9, 1, 7), true);
  check_qr(decaying(60, 30, 0.3, 8));                                     // condition 1e15
  check_qr(Matrix(9, 4));                                                 // zero
  check_qr(multiply(random_matrix(20, 3, 9), random_matrix(3, 11, 10)));  // rank 3
  check_qr(times(random_matrix(12, 5, 11), 1e-200));  // the CPU's overflows here
  check_qr(times(random_matrix(12, 5, 12), 1e200));
}

// Either way gives the same factors, so a broken Cholesky would go unseen behind Householder: they
// are distinguished by the scratch they take, 2 M N + 3 N^2 elements or M N and more on top.
int64_t scratch_of_qr(const Matrix& a) {
  DeviceTest t;
  const Array x = t.values<double>({a.rows, a.cols}, a.values),
              q = t.empty<double>({a.rows, a.cols}), r = t.empty<double>({a.cols, a.cols});
  const WorkspaceSpy spy(t);
  CHECK(t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.qr, ctx, {.a = view(x), .q = view(q), .r = view(r)});
  }) == 0);
  return spy.total() / static_cast<int64_t>(sizeof(double));
}

TEST_CASE("qr on the device: well-conditioned matrices take Cholesky's way") {
  for (const auto& [m, n] : {std::pair<int64_t, int64_t>{130, 70}, {90, 31}, {77, 33}, {60, 60}}) {
    CAPTURE(m);
    CHECK(scratch_of_qr(random_matrix(m, n, 21)) < 5 * m * n / 2 + 3 * n * n + 200);
    CHECK(scratch_of_qr(decaying(m, n, 0.1, 22)) > 3 * m * n + 3 * n * n);
  }
}

TEST_CASE("qr on the device: NaN ends, f32 and 16-bit are rounded once") {
  DeviceTest t;
  const Array bad = t.random<double>({6, 4}), q = t.empty<double>({6, 4}),
              r = t.empty<double>({4, 4});
  bad->set(5, std::nan(""));
  CHECK(t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.qr, ctx, {.a = view(bad), .q = view(q), .r = view(r)});
  }) == 0);
  CHECK(t.synchronize() == 0);
  for (const int32_t dtype : {BALORA_F32, BALORA_BF16, BALORA_F16}) {
    const Array x = t.random(dtype, {14, 6}), nq = t.make(dtype, {14, 6}),
                nr = t.make(dtype, {6, 6});
    t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      return call(k.qr, ctx, {.a = view(x), .q = view(nq), .r = view(nr)});
    });
    t.check_close(nq, 1e-7);
    t.check_close(nr, 1e-7);
  }
}

// ---- svd ----------------------------------------------------------------------------------------

void check_svd(const Matrix& a, bool compared = true) {
  const int64_t m = a.rows, n = a.cols, k = std::min(m, n);
  CAPTURE(m);
  CAPTURE(n);
  DeviceTest t;
  const Array x = t.values<double>({m, n}, a.values), u = t.empty<double>({m, k}),
              s = t.empty<double>({k}), vt = t.empty<double>({k, n}), only = t.empty<double>({k});
  t.both([&](const KernelTable& table, Context* ctx, const auto& view) {
    return call(table.svd, ctx, {.a = view(x), .u = view(u), .s = view(s), .vt = view(vt)}) |
           call(table.svd, ctx, {.a = view(x), .s = view(only)});
  });
  const std::vector<double> sigma = s->from_device();
  CHECK(sigma == only->from_device());
  CHECK(std::is_sorted(sigma.rbegin(), sigma.rend()));
  const Matrix mu = matrix_of(u->from_device(), m, k), mv = matrix_of(vt->from_device(), k, n);
  CHECK(orthonormality(mu) < 1e-12);
  CHECK(orthonormality(transposed(mv)) < 1e-12);
  const double size = static_cast<double>(k);
  CHECK(max_difference(multiply(scaled_columns(mu, sigma), mv), a) <=
        2e-15 * (4 + size) * sigma[0]);
  for (int64_t i = 0; compared && i < k; ++i) {
    CHECK(std::abs(sigma[static_cast<size_t>(i)] - s->host(i)) <= 1e-15 * (4 + size) * s->host(0));
  }
}

TEST_CASE("svd on the device: tall, wide, square, deficient, clustered, tiny, huge") {
  check_svd(random_matrix(90, 31, 1));
  check_svd(random_matrix(20, 33, 2));
  check_svd(random_matrix(40, 40, 3));
  check_svd(random_matrix(1, 1, 4));
  check_svd(random_matrix(1, 9, 5));
  check_svd(random_matrix(9, 1, 6));
  check_svd(Matrix(9, 7));                                                 // zero
  check_svd(multiply(random_matrix(20, 3, 9), random_matrix(3, 17, 10)));  // rank 3
  check_svd(decaying(50, 35, 0.3, 8));
  check_svd(designed(std::vector<double>(20, 1.0), 11));
  check_svd(times(random_matrix(12, 5, 12), 1e-200), false);  // the CPU's overflows here
  check_svd(times(random_matrix(5, 12, 13), 1e200), false);
}

TEST_CASE("svd on the device: small singular values keep their digits") {
  Matrix a(12, 12);  // columns of very different lengths, in an order that does not help
  const Matrix q = random_matrix(12, 12, 14);
  for (int64_t i = 0; i < 12; ++i) {
    for (int64_t j = 0; j < 12; ++j)
      a(i, j) = q(i, j) * std::pow(10.0, -static_cast<double>(j * 5 % 12));
  }
  DeviceTest t;
  const Array x = t.values<double>({12, 12}, a.values), s = t.empty<double>({12});
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.svd, ctx, {.a = view(x), .s = view(s)});
  });
  const std::vector<double> sigma = s->from_device();
  for (int64_t i = 0; i < 12; ++i) {  // the CPU's are good to 1e-16 of the largest
    CHECK(std::abs(sigma[static_cast<size_t>(i)] / s->host(i) - 1) <
          1e-13 + 1e-15 * sigma[0] / s->host(i));
  }
}

TEST_CASE("svd on the device: many pairs of blocks") {
  check_svd(random_matrix(110, 100, 15));
}

TEST_CASE("svd on the device: f32 rounded once; NaN and infinity end in a named failure") {
  DeviceTest t;
  const Array x = t.random<float>({11, 7}), s = t.empty<float>({7});
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.svd, ctx, {.a = view(x), .s = view(s)});
  });
  t.check_close(s, 1e-7);
  for (const auto& [m, n] : {std::pair<int64_t, int64_t>{6, 6}, {9, 4}, {4, 9}}) {
    for (const double bad : {std::nan(""), HUGE_VAL}) {
      const Array y = t.random<double>({m, n}), u = t.empty<double>({m, std::min(m, n)}),
                  w = t.empty<double>({std::min(m, n)}), vt = t.empty<double>({std::min(m, n), n});
      y->set(3, bad);
      CHECK(t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
        return call(k.svd, ctx, {.a = view(y), .u = view(u), .s = view(w), .vt = view(vt)});
      }) == 0);
      CHECK(t.synchronize() != 0);
      CHECK(t.error() == "svd: the matrix holds NaN or infinity");
    }
  }
}

TEST_CASE("gram_spectrum on the device: the singular values of H W^T") {
  for (const int64_t rows : {int64_t{12}, int64_t{3}}) {  // 3: both Gram matrices are deficient
    const Matrix h = random_matrix(rows, 9, 16), w = random_matrix(20, 9, 17);
    DeviceTest t;
    const Array m = t.values<double>({9, 9}, multiply(transposed(h), h).values),
                g = t.values<double>({9, 9}, multiply(transposed(w), w).values),
                s = t.empty<double>({9});
    t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      return call(k.gram_spectrum, ctx, {.m = view(m), .g = view(g), .s = view(s)});
    });
    const std::vector<double> sigma = s->from_device();
    for (int64_t i = 0; i < std::min(rows, int64_t{9}); ++i) {
      CHECK(std::abs(sigma[static_cast<size_t>(i)] - s->host(i)) < 1e-12 * s->host(0));
    }
    for (int64_t i = rows; i < 9; ++i) CHECK(sigma[static_cast<size_t>(i)] < 1e-6 * sigma[0]);
  }
}

}  // namespace
