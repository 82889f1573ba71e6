// The SVD regularizer's kernels against the dense singular values of Z and central
// differences, in f64.
#include <functional>

#include "kernels/cpu/linalg/krylov.h"
#include "support/kernel_test.h"

using namespace balora;
using namespace balora::test;

namespace {

struct Case {
  int64_t m, c, v, k;
  bool nuclear;
  double softcap;
};

double plain_value(const Matrix& h, const Matrix& w, const Case& t) {
  TestContext ctx;
  Matrix z = product(ctx, h, transposed(w));
  if (t.softcap > 0) {
    for (double& value : z.values) value = t.softcap * std::tanh(value / t.softcap);
  }
  const SvdResult svd = thin_svd(ctx, z);
  double sum = 0, all = 0, squares = 0;
  for (size_t i = 0; i < svd.s.size(); ++i) {
    if (static_cast<int64_t>(i) < t.k) sum += svd.s[i];
    all += svd.s[i];
    squares += svd.s[i] * svd.s[i];
  }
  return -sum / (t.nuclear ? all : std::sqrt(squares));
}

Matrix to_matrix(Array<double>& a, int64_t rows, int64_t cols) {
  Matrix out(rows, cols);
  out.values = a.values();
  return out;
}

// A few entries of the gradient by central differences.
void check_gradient(Matrix x, const Array<double>& gradient,
                    const std::function<double(const Matrix&)>& f) {
  double largest = 0;
  for (int64_t i = 0; i < gradient.size(); ++i) largest = std::max(largest, std::abs(gradient[i]));
  for (int64_t i = 0; i < gradient.size(); i += std::max<int64_t>(1, gradient.size() / 12)) {
    const double step = 1e-5, at = x.values[static_cast<size_t>(i)];
    x.values[static_cast<size_t>(i)] = at + step;
    const double up = f(x);
    x.values[static_cast<size_t>(i)] = at - step;
    const double down = f(x);
    x.values[static_cast<size_t>(i)] = at;
    CHECK(std::abs((up - down) / (2 * step) - gradient[i]) <= 1e-5 * largest + 1e-9);
  }
}

void check_case(const Case& t) {
  CAPTURE(t.m);
  CAPTURE(t.c);
  CAPTURE(t.v);
  CAPTURE(t.nuclear);
  CAPTURE(t.softcap);
  std::mt19937 random(11);
  TestContext ctx;
  Array<double> h({t.m, t.c}, random), w({t.v, t.c}, random, 2);
  Array<double> value(std::vector<int64_t>{}), dh({t.m, t.c}), dw({t.v, t.c}), g({t.c, t.c});
  const View vh = h.view(), vw = w.view(), vg = g.view(), vv = value.view(), vdh = dh.view(),
             vdw = dw.view();
  const Matrix mh = to_matrix(h, t.m, t.c), mw = to_matrix(w, t.v, t.c);
  const double expected = plain_value(mh, mw, t);
  const auto of_h = [&](const Matrix& x) { return plain_value(x, mw, t); };
  if (t.softcap == 0) {
    gram_kernel(ctx, {.a = &vw, .g = &vg, .accumulate = 0});
    svd_ratio_gram_kernel(
        ctx, {.h = &vh, .g = &vg, .value = &vv, .dh = &vdh, .k = t.k, .nuclear = t.nuclear});
    CHECK(std::abs(value[0] - expected) < 1e-11);
    check_gradient(mh, dh, of_h);
    svd_ratio_gram_kernel(ctx, {.h = &vh, .g = &vg, .value = &vv, .k = t.k, .nuclear = t.nuclear});
    CHECK(std::abs(value[0] - expected) < 1e-11);
  }
  svd_ratio_tiles_kernel(ctx, {.h = &vh,
                               .w = &vw,
                               .value = &vv,
                               .dh = &vdh,
                               .dw = &vdw,
                               .k = t.k,
                               .nuclear = t.nuclear,
                               .softcap = t.softcap,
                               .chunk_bytes = t.m * 16 * 5});
  CHECK(std::abs(value[0] - expected) < 1e-11);
  check_gradient(mh, dh, of_h);
  check_gradient(mw, dw, [&](const Matrix& x) { return plain_value(mh, x, t); });
}

}  // namespace

TEST_CASE("svd ratio: Gram and tile forms equal the definition and its central differences") {
  check_case({7, 16, 33, 3, false, 0});
  check_case({7, 16, 33, 3, true, 0});
  check_case({31, 9, 40, 4, false, 0});  // more rows than channels
  check_case({31, 9, 40, 4, true, 0});
  check_case({50, 9, 13, 4, false, 0});  // more rows than tokens
  check_case({50, 20, 13, 4, true, 0});  // head of deficient column rank
  check_case({12, 9, 33, 4, false, 5});
  check_case({50, 9, 13, 4, true, 3});
  check_case({1, 5, 9, 3, false, 0});  // constant -1
}

TEST_CASE("svd ratio: the block Krylov form at sizes where it takes over") {
  check_case({260, 200, 300, 4, false, 0});
  check_case({210, 230, 240, 4, false, 0});
}

// A product with G is in f32 there, and the result is rounded once. Few singular values are nearly
// all of Z, so that the parts of the gradient nearly cancel.
TEST_CASE_TEMPLATE("svd ratio: the block Krylov form of lower precision", T, float, bf16, f16) {
  constexpr int64_t kRows = 330, kChannels = 230;
  constexpr double kLeast = std::is_same_v<T, f16> ? 0x1p-25 : 0;  // half of f16's smallest number
  std::mt19937 random(7);
  TestContext ctx(3);
  Array<T> h({kRows, kChannels}, random), dh({kRows, kChannels});
  Array<double> w({500, kChannels}, random), g({kChannels, kChannels});
  for (int64_t i = 0; i < w.size(); ++i) w.data()[i] *= i % kChannels < 3 ? 300 : 1;  // steep
  Array<double> wide({kRows, kChannels}, h.values()), want({kRows, kChannels});
  Array<double> value(std::vector<int64_t>{}), expected(std::vector<int64_t>{});
  const View vh = h.view(), vdh = dh.view(), vw = w.view(), vg = g.view(), vwide = wide.view(),
             vwant = want.view(), vv = value.view(), ve = expected.view();
  gram_kernel(ctx, {.a = &vw, .g = &vg, .accumulate = 0});
  svd_ratio_gram_kernel(ctx, {.h = &vwide, .g = &vg, .value = &ve, .dh = &vwant, .k = 5});
  const uint64_t before = ctx.scratch_bytes();
  svd_ratio_gram_kernel(ctx, {.h = &vh, .g = &vg, .value = &vv, .k = 5});
  CHECK(std::abs(value[0] - expected[0]) < 1e-8);
  svd_ratio_gram_kernel(ctx, {.h = &vh, .g = &vg, .value = &vv, .dh = &vdh, .k = 5});
  CHECK(std::abs(value[0] - expected[0]) < 1e-8);
  // The dense form has no scratch but H in f64: this one ran.
  CHECK(ctx.scratch_bytes() - before > 2 * kRows * kChannels * (sizeof(double) + sizeof(float)));
  double largest = 0;
  for (int64_t i = 0; i < want.size(); ++i) largest = std::max(largest, std::abs(want[i]));
  for (int64_t i = 0; i < want.size(); ++i) {
    const double allowed = epsilon_of<T>() * std::abs(want[i]) + 1e-6 * largest + kLeast;
    REQUIRE(std::abs(dh[i] - want[i]) <= allowed);
  }
}

TEST_CASE(
    "svd ratio: zero logits give value 0 and gradient 0; components below the rank carry none") {
  TestContext ctx;
  Array<double> h({4, 3}, std::vector<double>(12, 0.0)), g({3, 3}, {1, 0, 0, 0, 1, 0, 0, 0, 1});
  Array<double> value(std::vector<int64_t>{}), dh({4, 3});
  const View vh = h.view(), vg = g.view(), vv = value.view(), vdh = dh.view();
  for (const int nuclear : {0, 1}) {
    svd_ratio_gram_kernel(
        ctx, {.h = &vh, .g = &vg, .value = &vv, .dh = &vdh, .k = 2, .nuclear = nuclear});
    CHECK(value[0] == 0);
    for (int64_t i = 0; i < dh.size(); ++i) CHECK(dh[i] == 0);
  }
  // Rank one: Z = u v^T, L = -1 with every k, and the smallest-norm gradient vanishes.
  for (int64_t i = 0; i < 4; ++i) h.data()[3 * i] = static_cast<double>(i + 1);
  svd_ratio_gram_kernel(ctx, {.h = &vh, .g = &vg, .value = &vv, .dh = &vdh, .k = 3, .nuclear = 0});
  CHECK(std::abs(value[0] + 1) < 1e-7);
  for (int64_t i = 0; i < dh.size(); ++i) CHECK(std::abs(dh[i]) < 1e-7);
}

TEST_CASE("gram_spectrum gives the singular values of H W^T") {
  TestContext ctx;
  std::mt19937 random(5);
  Array<float> h({40, 12}, random), w({30, 12}, random);
  Array<double> m({12, 12}), g({12, 12}), s(std::vector<int64_t>{12});
  const View vh = h.view(), vw = w.view(), vm = m.view(), vg = g.view(), vs = s.view();
  gram_kernel(ctx, {.a = &vh, .g = &vm, .accumulate = 0});
  gram_kernel(ctx, {.a = &vw, .g = &vg, .accumulate = 0});
  gram_spectrum_kernel(ctx, {.m = &vm, .g = &vg, .s = &vs});
  Matrix mh(40, 12), mw(30, 12);
  mh.values = h.values();
  mw.values = w.values();
  const SvdResult svd = thin_svd(ctx, product(ctx, mh, transposed(mw)));
  for (int64_t i = 0; i < 12; ++i) CHECK(std::abs(s[i] - svd.s[static_cast<size_t>(i)]) < 1e-7);
}
