// Optimiser kernels against plain f64 loops: odd sizes, both state types, thread counts that must
// not change a bit.
#include <cmath>
#include <memory>

#include "kernels/shared/op_codes.h"
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
    const AdamwOperands first{
        .grad = &vg, .rate = &vr, .param = &vp, .m = &vm, .v = &vv, .weight_decay = decay};
    AdamwOperands same = first;
    same.param = &wp, same.m = &wm, same.v = &wv;
    const AdamwList one_tensor{&first, 1}, again{&same, 1};
    REQUIRE(
        adamw_step_kernel(
            one,
            {.tensors = &one_tensor, .coefficient = &vc, .beta1 = b1, .beta2 = b2, .eps = eps}) ==
        0);
    REQUIRE(
        adamw_step_kernel(
            three, {.tensors = &again, .coefficient = &vc, .beta1 = b1, .beta2 = b2, .eps = eps}) ==
        0);
    const double tolerance = 4 * epsilon_of<T>();
    check_close(param, p_expected, tolerance);
    check_close(m, m_expected, tolerance);
    check_close(v, v_expected, tolerance);
    check_close(param2, param.values(), 0);
  }
}

// Sizes around a thread's share, one of nothing, two groups with a decay and a rate of their own.
TEST_CASE("AdamW steps of many tensors are the steps of each, bit by bit") {
  std::mt19937 random(5);
  struct Parameter {
    Array<float> grad, param, m, v;
    View views[4];
  };
  const auto make = [&] {
    std::vector<std::unique_ptr<Parameter>> all;
    random.seed(5);
    for (const int64_t n :
         std::initializer_list<int64_t>{33, 0, 1, 8192, 123, 20001, 31, 8191, 0}) {
      all.emplace_back(new Parameter{Array<float>({n}, random),
                                     Array<float>({n}, random),
                                     Array<float>({n}, random),
                                     Array<float>({n}, random),
                                     {}});
      Parameter& p = *all.back();
      for (int64_t i = 0; i < n; ++i) p.v.data()[i] = std::abs(p.v.data()[i]);
      p.views[0] = p.grad.view(), p.views[1] = p.param.view();
      p.views[2] = p.m.view(), p.views[3] = p.v.view();
    }
    return all;
  };
  Array<double> slow({3}, {0.01, 0.037, 5.8}), fast({3}, {0.16, 0.6, 5.8}), factor({}, {0.5});
  const View rates[] = {slow.view(), fast.view()}, coefficient = factor.view();
  const auto operands = [&](std::vector<std::unique_ptr<Parameter>>& all) {
    std::vector<AdamwOperands> list;
    for (size_t i = 0; i < all.size(); ++i) {
      const View* views = all[i]->views;
      list.push_back({.grad = &views[0],
                      .rate = &rates[i % 2],
                      .param = &views[1],
                      .m = &views[2],
                      .v = &views[3],
                      .weight_decay = i % 3 ? 0.1 : 0});
    }
    return list;
  };
  auto each = make();
  TestContext single(1);
  for (const AdamwOperands& tensor : operands(each)) {
    const AdamwList one{&tensor, 1};
    REQUIRE(adamw_step_kernel(single, {.tensors = &one,
                                       .coefficient = &coefficient,
                                       .beta1 = 0.9,
                                       .beta2 = 0.99,
                                       .eps = 1e-6}) == 0);
  }
  for (const int threads : {1, 2, 3, 8}) {
    auto many = make();
    const std::vector<AdamwOperands> tensors = operands(many);
    const AdamwList list{tensors.data(), static_cast<int32_t>(tensors.size())};
    TestContext ctx(threads);
    REQUIRE(adamw_step_kernel(ctx, {.tensors = &list,
                                    .coefficient = &coefficient,
                                    .beta1 = 0.9,
                                    .beta2 = 0.99,
                                    .eps = 1e-6}) == 0);
    for (size_t i = 0; i < each.size(); ++i) {
      CAPTURE(i);
      check_close(many[i]->param, each[i]->param.values(), 0);
      check_close(many[i]->m, each[i]->m.values(), 0);
      check_close(many[i]->v, each[i]->v.values(), 0);
    }
  }
  const AdamwList none{};
  CHECK(adamw_step_kernel(single, {.tensors = &none,
                                   .coefficient = &coefficient,
                                   .beta1 = 0.9,
                                   .beta2 = 0.99,
                                   .eps = 1e-6}) == 0);
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
      REQUIRE(sgd_step_kernel(ctx, {.grad = &vg,
                                    .param = &vp,
                                    .buffer = &vb,
                                    .lr = 0.2,
                                    .momentum = 0.9,
                                    .dampening = 0.3,
                                    .weight_decay = 0.1,
                                    .nesterov = nesterov,
                                    .first = 0}) == 0);
      REQUIRE(sgd_step_kernel(ctx, {.grad = &vg,
                                    .param = &vq,
                                    .lr = 0.2,
                                    .momentum = 0,
                                    .dampening = 0,
                                    .weight_decay = 0.1,
                                    .nesterov = 0,
                                    .first = 1}) == 0);
      check_close(param, p_expected, 4 * epsilon_of<T>());
      check_close(buffer, b_expected, 4 * epsilon_of<T>());
      check_close(plain, plain_expected, 4 * epsilon_of<T>());
      const View first = buffer.view();
      REQUIRE(sgd_step_kernel(ctx, {.grad = &vg,
                                    .param = &vq,
                                    .buffer = &first,
                                    .lr = 0.2,
                                    .momentum = 0.9,
                                    .dampening = 0.3,
                                    .weight_decay = 0,
                                    .nesterov = 0,
                                    .first = 1}) == 0);
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
      const View* const views[] = {&vx};
      const ViewList list{views, 1};
      REQUIRE(norm_accumulate_kernel(one, {.tensors = &list,
                                           .total = &vt,
                                           .kind = static_cast<balora_norm_kind>(kind)}) == 0);
      REQUIRE(norm_accumulate_kernel(three, {.tensors = &list,
                                             .total = &va,
                                             .kind = static_cast<balora_norm_kind>(kind)}) == 0);
      check_close(total, {expected[kind]}, 1e-13);
      check_close(again, total.values(), 0);
    }
  }
}

TEST_CASE("the norm of many tensors is that of one after the other, bit by bit") {
  std::mt19937 random(6);
  Array<float> a({70001}, random), b({0}, random), c({33}, random);
  Array<bf16> d({40000}, random);
  const View va = a.view(), vb = b.view(), vc = c.view(), vd = d.view();
  const View* const views[] = {&va, &vb, &vc, &vd};
  for (const int kind : {BALORA_NORM_1, BALORA_NORM_2, BALORA_NORM_INF}) {
    Array<double> each({}, {0.5}), many({}, {0.5});
    const View ve = each.view(), vm = many.view();
    TestContext one(1), three(3);
    for (const View* const& view : views) {
      const ViewList list{&view, 1};
      REQUIRE(norm_accumulate_kernel(one, {.tensors = &list,
                                           .total = &ve,
                                           .kind = static_cast<balora_norm_kind>(kind)}) == 0);
    }
    const ViewList list{views, 4}, none{};
    REQUIRE(norm_accumulate_kernel(three, {.tensors = &list,
                                           .total = &vm,
                                           .kind = static_cast<balora_norm_kind>(kind)}) == 0);
    check_close(many, each.values(), 0);
    REQUIRE(norm_accumulate_kernel(three, {.tensors = &none,
                                           .total = &vm,
                                           .kind = static_cast<balora_norm_kind>(kind)}) == 0);
    check_close(many, each.values(), 0);
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
    REQUIRE(scale_kernel(ctx, {.coefficient = &vc, .x = &vx}) == 0);
    check_close(x, scaled, 2 * epsilon_of<T>());
    std::vector<double> added;
    for (int64_t i = 0; i < n; ++i) added.push_back(x[i] - 1.5 * source[i]);
    REQUIRE(add_scaled_kernel(ctx, {.source = &vs, .destination = &vx, .alpha = -1.5}) == 0);
    check_close(x, added, 2 * epsilon_of<T>());
  }
}

}  // namespace
