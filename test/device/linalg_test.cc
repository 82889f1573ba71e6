// The decompositions on the device by their defining properties, as the CPU's are tested in
// test/native/kernels/linalg_test.cc; values against the CPU's.
#include "kernels/cpu/dense.h"
#include "support/device_test.h"

namespace {

using namespace balora;
using namespace balora::test;

Matrix matrix_of(const std::vector<double>& values, int64_t rows, int64_t cols) {
  Matrix out(rows, cols);
  out.values = values;
  return out;
}

Matrix random_matrix(int64_t rows, int64_t cols, uint64_t seed) {
  Context ctx{};
  ctx.num_threads = 1;
  return normal_matrix(&ctx, rows, cols, seed);
}

Matrix multiply(const Matrix& a, const Matrix& b) {
  Context ctx{};
  ctx.num_threads = 1;
  return product(&ctx, a, b);
}

double largest(const Matrix& a) {
  double out = 0;
  for (const double value : a.values) out = std::max(out, std::abs(value));
  return out;
}

double max_difference(const Matrix& a, const Matrix& b) {
  REQUIRE(a.values.size() == b.values.size());
  double worst = 0;
  for (size_t i = 0; i < a.values.size(); ++i) {
    const double gap = std::abs(a.values[i] - b.values[i]);
    worst = gap <= worst ? worst : gap;  // a NaN stays
  }
  return worst;
}

double orthonormality(const Matrix& q) {
  Matrix gram = multiply(transposed(q), q);
  for (int64_t i = 0; i < gram.rows; ++i) gram(i, i) -= 1;
  return largest(gram);
}

Matrix scaled_columns(Matrix a, const std::vector<double>& d) {
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < a.cols; ++j) a(i, j) *= d[static_cast<size_t>(j)];
  }
  return a;
}

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
    return k.eigh(ctx, view(x), view(w), view(v)) | k.eigh(ctx, view(x), view(only), nullptr);
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

// U diag(values) U^T
Matrix designed(const std::vector<double>& values, uint64_t seed) {
  Context ctx{};
  ctx.num_threads = 1;
  const auto n = static_cast<int64_t>(values.size());
  const Matrix u = thin_qr(&ctx, random_matrix(n, n, seed)).q;
  Matrix a = multiply(scaled_columns(u, values), transposed(u));
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
  check_eigh(symmetric(130, 130, 11));
  std::vector<double> graded;
  for (int i = 0; i < 70; ++i) graded.push_back(std::pow(0.5, i));
  check_eigh(designed(graded, 12));
}

TEST_CASE("eigh on the device: f32 and 16-bit matrices are rounded once") {
  for (const int32_t dtype : {BALORA_F32, BALORA_BF16, BALORA_F16}) {
    DeviceTest t;
    const Matrix a = indefinite(13, 3);
    const Array x = t.of_values(dtype, {13, 13}, a.values), v = t.make(dtype, {13, 13});
    const Array w = t.empty<float>({13});
    t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      return k.eigh(ctx, view(x), view(w), view(v));
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
        return k.eigh(ctx, view(x), view(w), view(v));
      }) == 0);
      CHECK(t.synchronize() != 0);
      CHECK(t.error() == "eigh: the matrix holds NaN or infinity");
      CHECK(std::isnan(w->from_device()[0]));
    }
  }
}

}  // namespace
