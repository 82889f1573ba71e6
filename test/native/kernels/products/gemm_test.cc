// Matrix products against plain loops in f64, for every type, transposition and odd size, with
// alpha and beta.
#include "kernels/cpu/products/gemm.h"

#include <doctest/doctest.h>

#include <cmath>

#include "support/kernel_test.h"

namespace balora::test {
namespace {

template <typename T>
std::vector<T> random_vector(int64_t count, uint32_t seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<double> normal;
  std::vector<T> values(static_cast<size_t>(count));
  for (T& value : values) value = from_double<T>(normal(engine));
  return values;
}

struct Case {
  int64_t batch, m, n, k;
  bool ta = false, tb = false;
  double alpha, beta = 0;
};

// Rows are padded by a few elements so that leading dimensions differ from the widths.
constexpr int64_t kPad = 3;

template <typename A, typename B, typename C>
void check_case(const Case& c, int64_t pad = kPad) {
  TestContext ctx;
  const int64_t lda = (c.ta ? c.m : c.k) + pad, ldb = (c.tb ? c.k : c.n) + pad, ldc = c.n + pad;
  const int64_t size_a = (c.ta ? c.k : c.m) * lda, size_b = (c.tb ? c.n : c.k) * ldb;
  auto a = random_vector<A>(c.batch * size_a + 1, 1);
  auto b = random_vector<B>(c.batch * size_b + 1, 2);
  auto out = random_vector<C>(c.batch * c.m * ldc + 1, 3);
  const auto before = out;
  const GemmInput in_a = {a.data(), dtype_of<A>(), lda, c.ta, size_a};
  const GemmInput in_b = {b.data(), dtype_of<B>(), ldb, c.tb, size_b};
  const GemmOutput to_c = {out.data(), dtype_of<C>(), ldc, c.m * ldc};
  gemm(ctx, {c.m, c.n, c.k, c.batch}, in_a, in_b, to_c, {c.alpha, c.beta});
  const bool f64 = dtype_of<A>() == BALORA_F64 || dtype_of<B>() == BALORA_F64;
  const double unit = dtype_of<C>() == BALORA_BF16  ? 0x1p-8
                      : dtype_of<C>() == BALORA_F16 ? 0x1p-11
                                                    : (f64 ? 0x1p-52 : 0x1p-23);
  double worst = 0;
  for (int64_t i = 0; i < c.batch; ++i) {
    for (int64_t r = 0; r < c.m; ++r) {
      for (int64_t s = 0; s < ldc; ++s) {
        const int64_t where = (i * c.m + r) * ldc + s;
        if (s >= c.n) {  // padding is not written
          if (to_double(out[where]) != to_double(before[where])) worst = 1e30;
          continue;
        }
        double sum = 0, magnitude = 0;
        for (int64_t q = 0; q < c.k; ++q) {
          const double x = to_double(a[i * size_a + (c.ta ? q * lda + r : r * lda + q)]);
          const double y = to_double(b[i * size_b + (c.tb ? s * ldb + q : q * ldb + s)]);
          sum += x * y, magnitude += std::abs(x * y);
        }
        const double old = c.beta == 0 ? 0 : c.beta * to_double(before[where]);
        const double expected = c.alpha * sum + old;
        const double sums = (f64 ? 0x1p-52 : 0x1p-23) * (4 * std::sqrt(c.k) + 4) *
                            (std::abs(c.alpha) * magnitude + std::abs(old));
        const double allowed =
            unit * std::abs(expected) + sums + (dtype_of<C>() == BALORA_F16 ? 0x1p-25 : 1e-30);
        worst = std::max(worst, std::abs(to_double(out[where]) - expected) / allowed);
      }
    }
  }
  CHECK_MESSAGE(worst <= 1, "batch ", c.batch, " m ", c.m, " n ", c.n, " k ", c.k, " ta ", c.ta,
                " tb ", c.tb, " alpha ", c.alpha, " beta ", c.beta, " error/allowed ", worst);
}

template <typename A, typename B, typename C>
void check_types() {
  const int64_t sizes[][4] = {{1, 1, 1, 1},    {1, 1, 33, 31},  {1, 31, 1, 123}, {2, 33, 31, 16},
                              {3, 16, 48, 64}, {1, 123, 65, 1}, {1, 5, 7, 0}};
  for (const auto& s : sizes) {
    for (int bits = 0; bits < 4; ++bits) {
      for (const auto& [alpha, beta] : {std::pair{1.0, 0.0}, {0.25, 1.0}, {-2.0, 0.5}}) {
        const Case c = {.batch = s[0],
                        .m = s[1],
                        .n = s[2],
                        .k = s[3],
                        .ta = (bits & 1) != 0,
                        .tb = (bits & 2) != 0,
                        .alpha = alpha,
                        .beta = beta};
        check_case<A, B, C>(c);
        check_case<A, B, C>(c, 0);
      }
    }
  }
}

}  // namespace

TEST_CASE("gemm: f32") {
  check_types<float, float, float>();
}
TEST_CASE("gemm: bf16 into f32") {
  check_types<bf16, bf16, float>();
}
TEST_CASE("gemm: bf16 into bf16") {
  check_types<bf16, bf16, bf16>();
}
TEST_CASE("gemm: f16") {
  check_types<f16, f16, f16>();
}
TEST_CASE("gemm: f64") {
  check_types<double, double, double>();
}
TEST_CASE("gemm: mixed bf16 and f32") {
  check_types<bf16, float, float>();
}
TEST_CASE("gemm: mixed f32 and bf16 into bf16") {
  check_types<float, bf16, bf16>();
}

TEST_CASE("gemm: a wide B is widened in blocks of columns") {
  const Case wide = {.batch = 1, .m = 3, .n = 9000, .k = 600, .alpha = 1};
  Case transposed = wide, added = wide;
  transposed.tb = true;
  added.beta = 1;
  check_case<f16, f16, f16>(transposed);
  check_case<f16, f16, float>(added);
}

TEST_CASE("gemm: a long B is widened in blocks of rows") {
  const Case tall = {.batch = 1, .m = 3, .n = 600, .k = 9000, .alpha = 0.5, .beta = 2};
  Case turned = tall, ragged = tall;
  turned.ta = true;
  ragged.k = 1771;  // two blocks
  check_case<float, bf16, float>(tall);
  check_case<float, f16, float>(turned);
  check_case<float, bf16, float>(ragged);
  check_case<double, bf16, double>(tall);
}

TEST_CASE("gemm: a long A is widened in parts of k") {
  const Case tall = {.batch = 1, .m = 3, .n = 600, .k = 2049, .alpha = 0.5, .beta = 2};
  Case wide = tall, turned = tall, fresh = tall;
  wide.n = 1601;  // whose B is widened in blocks of columns as well
  turned.tb = true;
  fresh.beta = 0;
  for (const Case& c : {tall, wide, turned, fresh}) {
    check_case<bf16, bf16, float>(c);
    check_case<f16, f16, float>(c);
    check_case<bf16, float, float>(c);
    check_case<float, double, double>(c);
    check_case<f16, f16, f16>(c);
  }
}

TEST_CASE("gemm: a repeated batch operand has batch stride 0") {
  TestContext ctx;
  for (const bool narrow : {false, true}) {
    auto a = random_vector<float>(2 * 3 * 5, 1), b = random_vector<float>(5 * 4, 2);
    auto a16 = random_vector<bf16>(2 * 3 * 5, 1), b16 = random_vector<bf16>(5 * 4, 2);
    std::vector<float> c(2 * 3 * 4);
    const int32_t type = narrow ? BALORA_BF16 : BALORA_F32;
    gemm(ctx, {3, 4, 5, 2},
         {narrow ? static_cast<void*>(a16.data()) : a.data(), type, 5, false, 15},
         {narrow ? static_cast<void*>(b16.data()) : b.data(), type, 4},
         {c.data(), BALORA_F32, 4, 12});
    for (int64_t i = 0; i < 24; ++i) {
      double expected = 0;
      for (int64_t q = 0; q < 5; ++q) {
        const int64_t x = i / 4 * 5 + q, y = q * 4 + i % 4;
        expected += narrow ? to_double(a16[x]) * to_double(b16[y]) : double(a[x]) * b[y];
      }
      CHECK(c[i] == doctest::Approx(expected).epsilon(1e-5));
    }
  }
}

}  // namespace balora::test
