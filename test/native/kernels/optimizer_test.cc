// Optimiser kernels against plain f64 loops: odd sizes, both state types, thread counts that must
// not change a bit.
#include <cmath>

#include "kernels/op_codes.h"
#include "support/views.h"

namespace {

using namespace balora;
using namespace balora::test;

constexpr int64_t kSizes[] = {1, 31, 33, 123, 70001};

TEST_CASE_TEMPLATE("AdamW steps", T, float, double) {
  constexpr double lr = 0.01, b1 = 0.9, b2 = 0.99, eps = 1e-6, decay = 0.1;
  std::mt19937 random(1);
  for (const int64_t n : kSizes) {
    Array<T> grad({n}, random), param({n}, random), m({n}, random), v({n}, random);
    for (int64_t i = 0; i < n; ++i) v.data()[i] = std::abs(v.data()[i]);
    Array<T> param2({n}, param.values()), m2({n}, m.values()), v2({n}, v.values());
    Array<double> coefficient({}, {0.5});
    std::vector<double> p_expected, m_expected, v_expected;
    for (int64_t i = 0; i < n; ++i) {
      const double g = grad[i] * 0.5, first = b1 * m[i] + (1 - b1) * g,
                   second = b2 * v[i] + (1 - b2) * g * g;
      m_expected.push_back(first);
      v_expected.push_back(second);
      const double m_hat = first / (1 - std::pow(b1, 3)), v_hat = second / (1 - std::pow(b2, 3));
      p_expected.push_back(param[i] * (1 - lr * decay) - lr * m_hat / (std::sqrt(v_hat) + eps));
    }
    const View vg = grad.view(), vc = coefficient.view(), vp = param.view(), vm = m.view(),
               vv = v.view(), wp = param2.view(), wm = m2.view(), wv = v2.view();
    TestContext one(1), three(3);
    Array<double> rate({3}, {lr, lr / (1 - std::pow(b1, 3)), 1 / std::sqrt(1 - std::pow(b2, 3))});
    const View vr = rate.view();
    REQUIRE(adamw_step_kernel(one, &vg, &vc, &vr, &vp, &vm, &vv, b1, b2, eps, decay) == 0);
    REQUIRE(adamw_step_kernel(three, &vg, &vc, &vr, &wp, &wm, &wv, b1, b2, eps, decay) == 0);
    const double tolerance = 4 * epsilon_of<T>();
    check_close(param, p_expected, tolerance);
    check_close(m, m_expected, tolerance);
    check_close(v, v_expected, tolerance);
    check_close(param2, param.values(), 0);
  }
}

TEST_CASE_TEMPLATE("SGD steps, with and without momentum", T, float, double) {
  std::mt19937 random(2);
  for (const int64_t n : kSizes) {
    for (const bool nesterov : {false, true}) {
      Array<T> grad({n}, random), param({n}, random), buffer({n}, random), plain({n}, random);
      std::vector<double> p_expected, b_expected, plain_expected;
      for (int64_t i = 0; i < n; ++i) {
        const double g = grad[i] + 0.1 * param[i], moment = 0.9 * buffer[i] + 0.7 * g;
        b_expected.push_back(moment);
        p_expected.push_back(param[i] - 0.2 * (nesterov ? g + 0.9 * moment : moment));
        plain_expected.push_back(plain[i] - 0.2 * (grad[i] + 0.1 * plain[i]));
      }
      const View vg = grad.view(), vp = param.view(), vb = buffer.view(), vq = plain.view();
      TestContext ctx(3);
      REQUIRE(sgd_step_kernel(ctx, &vg, nullptr, &vp, &vb, 0.2, 0.9, 0.3, 0.1, nesterov, 0) == 0);
      REQUIRE(sgd_step_kernel(ctx, &vg, nullptr, &vq, nullptr, 0.2, 0, 0, 0.1, 0, 1) == 0);
      check_close(param, p_expected, 4 * epsilon_of<T>());
      check_close(buffer, b_expected, 4 * epsilon_of<T>());
      check_close(plain, plain_expected, 4 * epsilon_of<T>());
      const View first = buffer.view();
      REQUIRE(sgd_step_kernel(ctx, &vg, nullptr, &vq, &first, 0.2, 0.9, 0.3, 0, 0, 1) == 0);
      check_close(buffer, grad.values(), 0);
    }
  }
}

TEST_CASE_TEMPLATE("norms add up over calls, whatever the threads", T, float, bf16, f16, double) {
  std::mt19937 random(3);
  for (const int64_t n : kSizes) {
    Array<T> x({n}, random);
    const double expected[] = {[&] {
                                 double s = 2;
                                 for (int64_t i = 0; i < n; ++i) s += std::abs(x[i]);
                                 return s;
                               }(),
                               [&] {
                                 double s = 2;
                                 for (int64_t i = 0; i < n; ++i) s += x[i] * x[i];
                                 return s;
                               }(),
                               [&] {
                                 double s = 0.5;
                                 for (int64_t i = 0; i < n; ++i) s = std::max(s, std::abs(x[i]));
                                 return s;
                               }()};
    for (const int kind : {BALORA_NORM_1, BALORA_NORM_2, BALORA_NORM_INF}) {
      Array<double> total({}, {kind == BALORA_NORM_INF ? 0.5 : 2.0}), again({}, total.values());
      const View vx = x.view(), vt = total.view(), va = again.view();
      TestContext one(1), three(3);
      REQUIRE(norm_accumulate_kernel(one, &vx, &vt, kind) == 0);
      REQUIRE(norm_accumulate_kernel(three, &vx, &va, kind) == 0);
      check_close(total, {expected[kind]}, 1e-13);
      check_close(again, total.values(), 0);
    }
  }
}

TEST_CASE_TEMPLATE("scale and add a multiple", T, float, bf16, f16, double) {
  std::mt19937 random(4);
  TestContext ctx(3);
  for (const int64_t n : kSizes) {
    Array<T> x({n}, random);
    Array<double> coefficient({}, {0.3});
    Array<bf16> source({n}, random);
    std::vector<double> scaled;
    for (int64_t i = 0; i < n; ++i) scaled.push_back(0.3 * x[i]);
    const View vx = x.view(), vc = coefficient.view(), vs = source.view();
    REQUIRE(scale_kernel(ctx, &vc, &vx) == 0);
    check_close(x, scaled, 2 * epsilon_of<T>());
    std::vector<double> added;
    for (int64_t i = 0; i < n; ++i) added.push_back(x[i] - 1.5 * source[i]);
    REQUIRE(add_scaled_kernel(ctx, &vs, &vx, -1.5) == 0);
    check_close(x, added, 2 * epsilon_of<T>());
  }
}

}  // namespace
