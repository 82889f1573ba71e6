// The fused head losses against the formulas in plain f64 loops over the whole (M,V) logits:
// values, dH and dW, per dtype, with the teacher live and summed up, the terms' rows apart, ties,
// soft-capping, a second head, and chunks of one row. Rows enough for a panel go by token where
// there is AMX (x86/by_token.cc).
#include <algorithm>
#include <limits>
#include <numeric>

#include "kernels/cpu/head/head.h"
#include "kernels/cpu/products/tiles.h"
#include "kernels/cpu/runtime/implementation.h"
#include "support/kernel_test.h"

using namespace balora;
using namespace balora::test;

namespace {

struct Plain {
  double sums[3] = {0, 0, 0}, loss = 0;
  std::vector<double> dh, dw;
};

struct Setting {
  int64_t m = 9, c = 8, v = 37;
  HeadOptions options{.task_scale = 0.3,
                      .consistency_scale = 0.2,
                      .diversity_scale = 0.15,
                      .temperature = 2.0,
                      .entropy_temperature = 1.0,
                      .entropy_top_k = 5};
  bool teacher = true, other_head = false, masks = true;
  bool factors = false;  // of rows

  double factor_of(int64_t row) const {
    return factors ? static_cast<double>(row % 5) * 0.5 - 0.75 : 1;
  }
  double logit_scale() const { return options.logit_scale == 0 ? 1 : options.logit_scale; }
};

balora_teacher live_teacher(const View& hidden, const View* head = nullptr) {
  return {.kind = BALORA_TEACHER_LIVE, .hidden = &hidden, .head = head};
}

std::vector<double> softmax(const std::vector<double>& x, double temperature) {
  const double max = *std::max_element(x.begin(), x.end());
  std::vector<double> p(x.size());
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += p[i] = std::exp((x[i] - max) / temperature);
  for (double& value : p) value /= sum;
  return p;
}

template <typename T>
std::vector<double> logits(const Array<T>& h, const Array<T>& w, int64_t row, const Setting& s) {
  std::vector<double> z(static_cast<size_t>(s.v));
  for (int64_t j = 0; j < s.v; ++j) {
    double sum = 0;
    for (int64_t c = 0; c < s.c; ++c) sum += h[row * s.c + c] * w[j * s.c + c];
    sum *= s.logit_scale();
    z[static_cast<size_t>(j)] =
        s.options.softcap > 0 ? s.options.softcap * std::tanh(sum / s.options.softcap) : sum;
  }
  return z;
}

// Adds the row's gradient with respect to its (capped) logits to dz.
void entropy_row(const std::vector<double>& z, const Setting& s, double& sum,
                 std::vector<double>& dz) {
  std::vector<size_t> order(z.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return z[a] > z[b]; });
  const size_t k = s.options.entropy_top_k > 0
                       ? std::min(z.size(), static_cast<size_t>(s.options.entropy_top_k))
                       : z.size();
  std::vector<double> kept;
  for (size_t i = 0; i < k; ++i) kept.push_back(z[order[i]]);
  const std::vector<double> pi = softmax(kept, s.options.entropy_temperature);
  double entropy = 0;
  for (const double p : pi) entropy -= p > 0 ? p * std::log(p) : 0;
  sum += entropy;
  for (size_t i = 0; i < k; ++i) {
    const double log_pi = pi[i] > 0 ? std::log(pi[i]) : 0;
    dz[order[i]] +=
        s.options.diversity_scale * pi[i] * (log_pi + entropy) / s.options.entropy_temperature;
  }
}

template <typename T>
Plain plain_losses(const Array<T>& h, const Array<T>& ht, const Array<T>& w, const Array<T>& wt,
                   const Array<int32_t>& targets, const Array<uint8_t>& regularized,
                   const Setting& s) {
  Plain out;
  out.dh.assign(static_cast<size_t>(s.m * s.c), 0);
  out.dw.assign(static_cast<size_t>(s.v * s.c), 0);
  const double t = s.options.temperature;
  for (int64_t n = 0; n < s.m; ++n) {
    const std::vector<double> z = logits(h, w, n, s);
    const double before[3] = {out.sums[0], out.sums[1], out.sums[2]};
    std::vector<double> dz(z.size(), 0);
    const int64_t target = targets.data()[n];
    if (target >= 0) {
      const std::vector<double> p = softmax(z, 1);
      out.sums[0] -= std::log(p[static_cast<size_t>(target)]);
      for (size_t j = 0; j < z.size(); ++j) dz[j] += s.options.task_scale * p[j];
      dz[static_cast<size_t>(target)] -= s.options.task_scale;
    }
    if (!s.masks || regularized.data()[n]) {
      if (s.teacher) {
        const std::vector<double> y = logits(ht, s.other_head ? wt : w, n, s);
        const std::vector<double> p = softmax(z, t), q = softmax(y, t);
        for (size_t j = 0; j < z.size(); ++j) {
          out.sums[1] += t * t * q[j] * (std::log(q[j]) - std::log(p[j]));
          dz[j] += s.options.consistency_scale * t * (p[j] - q[j]);
        }
      }
      if (s.options.entropy_top_k >= 0) entropy_row(z, s, out.sums[2], dz);
    }
    const double scales[3] = {s.options.task_scale, s.options.consistency_scale,
                              -s.options.diversity_scale};
    for (int i = 0; i < 3; ++i) {
      out.loss += s.factor_of(n) * scales[i] * (out.sums[i] - before[i]);
    }
    for (int64_t j = 0; j < s.v; ++j) {
      const double capped =
          s.options.softcap > 0 ? z[static_cast<size_t>(j)] / s.options.softcap : 0;
      const double du =
          dz[static_cast<size_t>(j)] * (1 - capped * capped) * s.factor_of(n) * s.logit_scale();
      for (int64_t c = 0; c < s.c; ++c) {
        out.dh[static_cast<size_t>(n * s.c + c)] += du * w[j * s.c + c];
        out.dw[static_cast<size_t>(j * s.c + c)] += du * h[n * s.c + c];
      }
    }
  }
  return out;
}

template <typename T>
void check_near(const Array<T>& actual, const std::vector<double>& expected, double tolerance) {
  double largest = 0, worst = 0;
  for (const double value : expected) largest = std::max(largest, std::abs(value));
  for (int64_t i = 0; i < actual.size(); ++i) {
    const double error = std::abs(actual[i] - expected[static_cast<size_t>(i)]);
    worst = std::max(worst, std::isnan(error) ? 1e300 : error);
  }
  CHECK(worst <= tolerance * largest + tolerance * 1e-3);
}

template <typename T>
void check_setting(const Setting& s, double tolerance, double scale = 2) {
  std::mt19937 random(21);
  TestContext ctx;
  Array<T> h({s.m, s.c}, random, scale), ht({s.m, s.c}, random, scale);
  Array<T> w({s.v, s.c}, random), wt({s.v, s.c}, random);
  Array<int32_t> targets(std::vector<int64_t>{s.m});
  Array<uint8_t> regularized(std::vector<int64_t>{s.m});
  for (int64_t n = 0; n < s.m; ++n) {
    targets.data()[n] = n % 3 == 1 ? -100 : static_cast<int32_t>((n * 7) % s.v);
    regularized.data()[n] = n % 4 != 2;
  }
  using Sum = Acc<T>;
  Array<double> sums(std::vector<int64_t>{4}), rows({s.m, 3});
  Array<double> factors(std::vector<int64_t>{s.m});
  for (int64_t n = 0; n < s.m; ++n) factors.data()[n] = s.factor_of(n);
  const View vfactors = factors.view();
  Array<T> dh({s.m, s.c});
  Array<Sum> dw({s.v, s.c});
  const View vh = h.view(), vht = ht.view(), vw = w.view(), vwt = wt.view(), vt = targets.view(),
             vr = regularized.view(), vs = sums.view(), vrows = rows.view(), vdh = dh.view(),
             vdw = dw.view();
  const balora_teacher live = live_teacher(vht, s.other_head ? &vwt : nullptr);
  const balora_head_losses inputs = {.h = &vh,
                                     .w = &vw,
                                     .teacher = s.teacher ? live : balora_teacher{},
                                     .targets = &vt,
                                     .regularized = s.masks ? &vr : nullptr,
                                     .factors = s.factors ? &vfactors : nullptr,
                                     .sums = &vs,
                                     .options = s.options};
  balora_head_losses all = inputs;
  all.rows = &vrows, all.dh = &vdh, all.dw = &vdw;
  head_losses_kernel(ctx, all);
  const Plain expected = plain_losses(h, ht, w, wt, targets, regularized, s);
  for (int i = 0; i < 3; ++i) {
    CHECK(std::abs(sums[i] - expected.sums[i]) <= tolerance * (std::abs(expected.sums[i]) + 0.1));
    double total = 0;
    for (int64_t n = 0; n < s.m; ++n) total += rows[3 * n + i];
    CHECK(total == doctest::Approx(sums[i]).epsilon(1e-12));
  }
  CHECK(std::abs(sums[3] - expected.loss) <= tolerance * (std::abs(expected.loss) + 0.1 * s.m));
  check_near(dh, expected.dh, tolerance);
  check_near(dw, expected.dw, tolerance);
  const std::vector<double> before = sums.values();
  head_losses_kernel(ctx, inputs);
  CHECK(sums.values() == before);  // values alone are the same bits
  // Scales that are powers of two, half in the options and half in a tensor: the same bits.
  const std::vector<double> gradient = dh.values();
  balora_head_losses shared = inputs;
  shared.options.task_scale *= 0.5, shared.options.consistency_scale *= 0.25;
  shared.options.diversity_scale *= 2;
  Array<double> scales({3}, {2, 4, 0.5});
  const View vscales = scales.view();
  shared.scales = &vscales, shared.dh = &vdh;
  head_losses_kernel(ctx, shared);
  CHECK(sums.values() == before);
  CHECK(dh.values() == gradient);
  if (!s.teacher || s.options.softcap > 0) return;
  // The teacher as its summary.
  Array<Sum> mean({s.m, s.c});
  Array<double> entropy(std::vector<int64_t>{s.m});
  Array<double> log_probability(std::vector<int64_t>{s.m});
  const View vmean = mean.view(), ventropy = entropy.view(), vlog = log_probability.view();
  const balora_teacher kept = {.kind = BALORA_TEACHER_SUMMARY,
                               .mean = &vmean,
                               .entropy = &ventropy,
                               .log_probability = &vlog};
  teacher_summary_kernel(
      ctx, {.teacher = live, .w = &vw, .targets = &vt, .summary = kept, .options = s.options});
  for (int64_t n = 0; n < s.m; ++n) {
    const int64_t target = targets.data()[n];
    const std::vector<double> q = softmax(logits(ht, s.other_head ? wt : w, n, s), 1);
    const double truth = target < 0 ? 0 : std::log(q[static_cast<size_t>(target)]);
    CHECK(std::abs(log_probability[n] - truth) <= tolerance * (std::abs(truth) + 0.1));
  }
  balora_head_losses summarized = inputs;
  summarized.teacher = kept;
  summarized.rows = &vrows, summarized.dh = &vdh;
  head_losses_kernel(ctx, summarized);
  for (int i = 0; i < 3; ++i) {
    CHECK(std::abs(sums[i] - expected.sums[i]) <= tolerance * (std::abs(expected.sums[i]) + 0.1));
    double total = 0;
    for (int64_t n = 0; n < s.m; ++n) total += rows[3 * n + i];
    CHECK(total == doctest::Approx(sums[i]).epsilon(1e-12));
  }
  check_near(dh, expected.dh, tolerance);
}

template <typename T>
void check_settings(double tolerance) {
  Setting s;
  check_setting<T>(s, tolerance);
  for (const double temperature : {1.0, 3.0}) {  // exponentials kept, and taken again
    s.options.temperature = temperature;
    check_setting<T>(s, tolerance);
  }
  s.options.temperature = 2;
  s.options.chunk_bytes = 1;  // one row at a time
  s.other_head = true;
  check_setting<T>(s, tolerance);
  s.options.chunk_bytes = 4000;
  s.options.softcap = 6;
  check_setting<T>(s, tolerance);
  s.options.entropy_top_k = 0;
  check_setting<T>(s, tolerance);
  s = Setting{};
  s.teacher = s.masks = false;
  s.v = 2100;  // several blocks of the row passes, fewer than K
  check_setting<T>(s, tolerance);
  s.options.entropy_top_k = 3;  // more than K
  check_setting<T>(s, tolerance);
  s.options.entropy_top_k = 90;  // more than there are blocks
  s.options.entropy_temperature = 1.7;
  check_setting<T>(s, tolerance);
  s.m = 1;
  s.v = 1;
  s.options.entropy_top_k = 0;
  check_setting<T>(s, tolerance);
  for (const bool capped : {false, true}) {
    for (const double temperature : {2.0, 3.0}) {
      s = Setting{};
      s.factors = true;
      s.options.temperature = temperature;
      s.options.logit_scale = 0.625;
      s.options.softcap = capped ? 6 : 0;
      s.options.chunk_bytes = 4000;
      check_setting<T>(s, tolerance);
    }
  }
}

}  // namespace

TEST_CASE("head losses equal plain loops in f64") {
  check_settings<double>(1e-12);
}
TEST_CASE("head losses equal plain loops in f32") {
  check_settings<float>(3e-6);
}
TEST_CASE("head losses with bf16 operands stay within bf16 rounding of dZ and dH") {
  check_settings<bf16>(1.2e-2);
}
TEST_CASE("head losses with f16 operands stay within f16 rounding of dH") {
  check_settings<f16>(1.5e-3);
}

TEST_CASE("head losses over a large vocabulary sum to the precision of f64") {
  Setting s;
  s.m = 3, s.v = 49152;
  std::mt19937 random(5);
  TestContext ctx;
  // Operands that bf16 holds give products that f32 sums exactly, or nearly.
  Array<bf16> h({s.m, s.c}, random), ht({s.m, s.c}, random), w({s.v, s.c}, random);
  Array<int32_t> targets(std::vector<int64_t>{s.m}, {0, 49151, 7});
  Array<uint8_t> regularized(std::vector<int64_t>{s.m}, {1, 1, 1});
  Array<double> sums(std::vector<int64_t>{4});
  const View vh = h.view(), vht = ht.view(), vw = w.view(), vt = targets.view(), vs = sums.view();
  const Plain expected = plain_losses(h, ht, w, w, targets, regularized, s);
  head_losses_kernel(ctx, {.h = &vh,
                           .w = &vw,
                           .teacher = live_teacher(vht),
                           .targets = &vt,
                           .sums = &vs,
                           .options = s.options});
  for (int i = 0; i < 3; ++i) {
    CHECK(std::abs(sums[i] - expected.sums[i]) <= 1e-6 * std::abs(expected.sums[i]));
  }
}

TEST_CASE("head losses: the K largest by value, then by index, wherever they stand") {
  TestContext ctx;
  const int64_t v = 5000, k = 6;
  Array<float> h({1, 1}, {1.0}), w(std::vector<int64_t>{v, 1});
  for (int64_t j = 0; j < v; ++j) w.data()[j] = static_cast<float>(j % 7) * 0.1f;
  for (const int64_t j : {511, 512, 4999, 2048, 0}) w.data()[j] = 3;  // the sixth is a tie at 0.6
  Array<double> sums(std::vector<int64_t>{4});
  Array<float> dw(std::vector<int64_t>{v, 1});
  const View vh = h.view(), vw = w.view(), vs = sums.view(), vdw = dw.view();
  const HeadOptions options{
      .diversity_scale = 1, .temperature = 1, .entropy_temperature = 1, .entropy_top_k = k};
  head_losses_kernel(ctx, {.h = &vh, .w = &vw, .sums = &vs, .dw = &vdw, .options = options});
  const double rest = std::exp(0.6 - 3.0), sum = 5 + rest;
  CHECK(sums[2] == doctest::Approx(std::log(sum) - rest * (0.6 - 3.0) / sum).epsilon(1e-6));
  for (int64_t j = 0; j < v; ++j) {
    const bool chosen = j == 6 || w.data()[j] == 3;  // of the many ties the first
    CHECK((dw[j] != 0) == chosen);
  }
}

TEST_CASE("head losses: a NaN comes out, and nothing is read past the K") {
  std::mt19937 random(4);
  TestContext ctx;
  Array<float> h({2, 4}, random), w({700, 4}, random);
  for (int64_t c = 0; c < 4; ++c) h.data()[c] = std::numeric_limits<float>::quiet_NaN();
  Array<double> sums(std::vector<int64_t>{4}), rows({2, 3});
  Array<int32_t> targets(std::vector<int64_t>{2}, {1, 5});
  Array<float> dh({2, 4});
  const View vh = h.view(), vw = w.view(), vt = targets.view(), vs = sums.view(),
             vrows = rows.view(), vdh = dh.view();
  for (const double temperature : {2.0, 3.0}) {
    const HeadOptions options{.task_scale = 1,
                              .consistency_scale = 1,
                              .diversity_scale = 1,
                              .temperature = temperature,
                              .entropy_temperature = 1,
                              .entropy_top_k = 20};
    head_losses_kernel(ctx, {.h = &vh,
                             .w = &vw,
                             .teacher = live_teacher(vh),
                             .targets = &vt,
                             .sums = &vs,
                             .rows = &vrows,
                             .dh = &vdh,
                             .options = options});
    for (int64_t i = 0; i < 3; ++i) {
      CHECK(std::isnan(rows[i]));
      CHECK(std::isfinite(rows[3 + i]));
    }
    for (int64_t c = 0; c < 4; ++c) {
      CHECK(std::isnan(dh[c]));
      CHECK(std::isfinite(dh[4 + c]));
    }
  }
}

TEST_CASE("head losses: a NaN is among a K larger than the number of blocks") {
  TestContext ctx;
  const int64_t v = 700;
  for (const int64_t at : {0, 350, 699}) {
    Array<float> h({1, 1}, {1.0}), w(std::vector<int64_t>{v, 1});
    for (int64_t j = 0; j < v; ++j) w.data()[j] = static_cast<float>(j * 263 % v) * 0.01f;
    w.data()[at] = std::numeric_limits<float>::quiet_NaN();
    Array<double> sums(std::vector<int64_t>{4});
    const View vh = h.view(), vw = w.view(), vs = sums.view();
    const HeadOptions options{
        .diversity_scale = 1, .temperature = 1, .entropy_temperature = 1, .entropy_top_k = 90};
    head_losses_kernel(ctx, {.h = &vh, .w = &vw, .sums = &vs, .options = options});
    CHECK(std::isnan(sums[2]));
  }
}

TEST_CASE("head losses: student equal to teacher gives consistency exactly 0") {
  std::mt19937 random(4);
  TestContext ctx;
  Array<float> h({5, 16}, random, 3), w({999, 16}, random);
  Array<double> sums(std::vector<int64_t>{4});
  Array<float> dh({5, 16});
  const View vh = h.view(), vw = w.view(), vs = sums.view(), vdh = dh.view();
  for (const double temperature : {1.0, 2.0, 3.0}) {
    const HeadOptions options{.consistency_scale = 1,
                              .temperature = temperature,
                              .entropy_temperature = 1,
                              .entropy_top_k = -1};
    head_losses_kernel(ctx, {.h = &vh,
                             .w = &vw,
                             .teacher = live_teacher(vh),
                             .sums = &vs,
                             .dh = &vdh,
                             .options = options});
    CHECK(sums[1] == 0);
    for (int64_t i = 0; i < dh.size(); ++i) CHECK(dh[i] == 0);
  }
}

TEST_CASE("head losses: a target outside the vocabulary is named") {
  std::mt19937 random(4);
  TestContext ctx;
  Array<float> h({2, 3}, random), w({5, 3}, random);
  Array<double> sums(std::vector<int64_t>{4});
  Array<int32_t> targets(std::vector<int64_t>{2}, {1, 5});
  const View vh = h.view(), vw = w.view(), vs = sums.view(), vt = targets.view();
  const HeadOptions options{
      .task_scale = 1, .temperature = 1, .entropy_temperature = 1, .entropy_top_k = -1};
  CHECK_THROWS_WITH_AS(
      head_losses_kernel(ctx,
                         {.h = &vh, .w = &vw, .targets = &vt, .sums = &vs, .options = options}),
      "target 5 of row 1 is not a class id below 5 (-100 marks a row to ignore)", ArgumentError);
}

TEST_CASE("head losses do not depend on the thread count") {
  std::mt19937 random(6);
  Array<float> h({13, 24}, random, 2), w({400, 24}, random);
  const View vh = h.view(), vw = w.view();
  const HeadOptions options{.consistency_scale = 0.5,
                            .diversity_scale = 0.5,
                            .temperature = 2,
                            .entropy_temperature = 1,
                            .entropy_top_k = 20};
  std::vector<double> values[2];
  for (int i = 0; i < 2; ++i) {
    TestContext ctx(i ? 4 : 1);
    Array<double> sums(std::vector<int64_t>{4});
    const View vs = sums.view();
    head_losses_kernel(ctx, {.h = &vh, .w = &vw, .sums = &vs, .options = options});
    values[i] = sums.values();
  }
  CHECK(values[0] == values[1]);
}

TEST_CASE("head losses leave no subnormal numbers in the gradient of f32 logits") {
  // Logits 0, -8, -16, ...: probabilities far below f32's normal range, and a small scale on top.
  TestContext ctx;
  const int64_t v = 24;
  Array<float> h({1, 1}, {1.0}), w(std::vector<int64_t>{v, 1}), dw(std::vector<int64_t>{v, 1});
  for (int64_t j = 0; j < v; ++j) w.data()[j] = static_cast<float>(-8 * j);
  Array<int32_t> targets(std::vector<int64_t>{1}, {0});
  Array<double> sums(std::vector<int64_t>{4});
  const View vh = h.view(), vw = w.view(), vt = targets.view(), vs = sums.view(), vdw = dw.view();
  for (const double temperature : {1.0, 2.0}) {  // the squares of what is kept are at T = 1
    const HeadOptions options{.task_scale = 1e-4,
                              .temperature = temperature,
                              .entropy_temperature = 1,
                              .entropy_top_k = -1};
    head_losses_kernel(ctx, {.h = &vh,
                             .w = &vw,
                             .teacher = temperature == 2 ? live_teacher(vh) : balora_teacher{},
                             .targets = &vt,
                             .sums = &vs,
                             .dw = &vdw,
                             .options = options});
    for (int64_t j = 0; j < v; ++j) {
      CHECK((dw[j] == 0 || std::abs(dw[j]) >= std::numeric_limits<float>::min()));
      CHECK(std::abs(dw[j]) <=
            1e-4 * std::exp(-8.0 * static_cast<double>(std::max<int64_t>(j, 1))) * 1.01);
    }
    CHECK(dw[7] > 0);
  }
}

TEST_CASE("head losses by token equal plain loops in f64, whatever is ragged or left out") {
  // 37 and 70 rows fill neither panels nor vectors; 1,100 tokens no panel, 40 channels no step.
  Setting s;
  s.m = 37, s.c = 40, s.v = 1100;
  check_setting<bf16>(s, 1.2e-2, 1);
  s.options.temperature = 1;
  s.options.entropy_top_k = 40;  // more than the first tokens give a bound for
  check_setting<bf16>(s, 1.2e-2, 1);
  s.m = 70;
  s.options.chunk_bytes = 50 * (4 * 1100 + 34 * 40);  // 32 rows at a time
  s.other_head = true;
  check_setting<bf16>(s, 1.2e-2, 1);
  s.options.temperature = 2;
  s.teacher = s.masks = false;
  check_setting<bf16>(s, 1.2e-2, 1);
  s.options.entropy_top_k = -1;
  check_setting<bf16>(s, 1.2e-2, 1);
  s.v = 17;  // less than a panel of tokens
  s.teacher = true;
  check_setting<bf16>(s, 1.2e-2, 1);
  s.factors = true;
  check_setting<bf16>(s, 1.2e-2, 1);
  s.m = 33, s.c = 8, s.v = 6000;  // ten blocks of tokens in eight segments
  s.options.entropy_top_k = 20;
  s.options.chunk_bytes = 0;
  check_setting<bf16>(s, 1.2e-2, 2);
}

namespace {

int64_t rows_by_token([[maybe_unused]] const balora_head_losses& o) {
  BALORA_ON_X86(return x86::rows_by_token(o);)
  return 0;
}

// A call by token, where this processor has one, of bf16 operands.
struct Call {
  Array<bf16> h, ht, w, dh;
  Array<int32_t> targets;
  Array<double> sums, rows;
  Array<float> dw;
  View vh, vht, vw, vdh, vt, vs, vrows, vdw;
  balora_head_losses o;

  Call(int64_t m, int64_t c, int64_t v, double scale = 1)
      : Call(std::mt19937(21), m, c, v, scale) {}
  Call(const Call&) = delete;

  void run(int threads) {
    TestContext ctx(threads);
    head_losses_kernel(ctx, o);
  }

 private:
  Call(std::mt19937 random, int64_t m, int64_t c, int64_t v, double scale)
      : h({m, c}, random, scale),
        ht({m, c}, random, scale),
        w({v, c}, random),
        dh({m, c}),
        targets(std::vector<int64_t>{m}),
        sums(std::vector<int64_t>{4}),
        rows({m, 3}),
        dw({v, c}),
        vh(h.view()),
        vht(ht.view()),
        vw(w.view()),
        vdh(dh.view()),
        vt(targets.view()),
        vs(sums.view()),
        vrows(rows.view()),
        vdw(dw.view()),
        o{.h = &vh,
          .w = &vw,
          .teacher = live_teacher(vht),
          .targets = &vt,
          .sums = &vs,
          .rows = &vrows,
          .dh = &vdh,
          .options = {.task_scale = 0.3,
                      .consistency_scale = 0.2,
                      .diversity_scale = 0.15,
                      .temperature = 2,
                      .entropy_temperature = 1,
                      .entropy_top_k = 5}} {
    for (int64_t i = 0; i < m; ++i) targets.data()[i] = static_cast<int32_t>(i * 31 % v);
    CHECK((rows_by_token(o) > 0) == tiles_use_amx());
  }
};

}  // namespace

TEST_CASE("head losses by token: chunks within the bytes, and of 256 rows at most") {
  Call call(70, 40, 1100);
  call.o.options.chunk_bytes = 50 * (4 * 1100 + 34 * 40);  // as in the case of ragged rows
  CHECK(rows_by_token(call.o) == (tiles_use_amx() ? 32 : 0));
  call.o.options.chunk_bytes = 1;
  CHECK(rows_by_token(call.o) == 0);
  Call many(1000, 8, 40);
  CHECK(rows_by_token(many.o) == (tiles_use_amx() ? 256 : 0));
}

TEST_CASE("head losses by token do not depend on the thread count") {
  // Ten blocks of tokens in eight segments; 16 and 25 threads share their rows, too.
  Call call(64, 24, 6000);
  call.o.dw = &call.vdw;
  if (rows_by_token(call.o) == 0) {
    MESSAGE("not run: this process has no AMX");
    return;
  }
  std::vector<double> dh, rows, dw;
  for (const int threads : {1, 3, 16, 25}) {
    CAPTURE(threads);
    call.run(threads);
    if (threads == 1) {
      dh = call.dh.values(), rows = call.rows.values(), dw = call.dw.values();
    }
    CHECK(call.dh.values() == dh);
    CHECK(call.rows.values() == rows);
    CHECK(call.dw.values() == dw);
  }
}

TEST_CASE("head losses by token are no further from the truth than by row") {
  Setting s;
  s.m = 40, s.c = 32, s.v = 3000, s.masks = false;
  Call call(s.m, s.c, s.v);
  const Array<uint8_t> none(std::vector<int64_t>{1});
  const Plain truth = plain_losses(call.h, call.ht, call.w, call.w, call.targets, none, s);
  call.o.dw = &call.vdw;
  double errors[2] = {0, 0}, values[2] = {0, 0};
  for (const int by_row : {0, 1}) {
    call.o.options.chunk_bytes = by_row;  // a row at a time is never by token
    call.run(2);
    for (int64_t i = 0; i < call.dw.size(); ++i) {
      const double error = call.dw[i] - truth.dw[static_cast<size_t>(i)];
      errors[by_row] += error * error;
    }
    for (int i = 0; i < 3; ++i) {
      values[by_row] = std::max(values[by_row], std::abs(call.sums[i] / truth.sums[i] - 1));
    }
  }
  CHECK(std::sqrt(errors[0]) <= 1.02 * std::sqrt(errors[1]));
  CHECK(values[0] <= values[1] + 1e-7);
}

TEST_CASE("head losses by token: rows of one logit far above or far below all others") {
  Call call(64, 8, 3000);
  if (rows_by_token(call.o) == 0) {
    MESSAGE("not run: this process has no AMX");
    return;
  }
  // The target's logit is 40 above all others, which are 0; those of token 7 are 8e30 below.
  for (int64_t i = 0; i < call.w.size(); ++i) call.w.data()[i] = to_bf16(0.0f);
  for (int64_t c = 0; c < 8; ++c) {
    call.w.data()[2000 * 8 + c] = to_bf16(5.0f);
    call.w.data()[7 * 8 + c] = to_bf16(-1e30f);
  }
  for (int64_t i = 0; i < call.h.size(); ++i) {
    call.h.data()[i] = call.ht.data()[i] = to_bf16(1.0f);
  }
  for (int64_t i = 0; i < 64; ++i) call.targets.data()[i] = 2000;
  for (const double temperature : {1.0, 2.0}) {
    CAPTURE(temperature);
    call.o.options.temperature = temperature;
    call.run(2);
    // Sums of a group are in f32: where the target is in it, they keep nothing of the others.
    const double task = std::log1p(2998 * std::exp(-40.0));
    for (int64_t i = 0; i < 64; ++i) {
      CHECK(call.rows[i * BALORA_HEAD_TERMS + BALORA_HEAD_TASK] >= 0);
      CHECK(std::abs(call.rows[i * BALORA_HEAD_TERMS + BALORA_HEAD_TASK] - task) < 3e-15);
      CHECK(call.rows[i * BALORA_HEAD_TERMS + BALORA_HEAD_CONSISTENCY] == 0);
    }
    for (int64_t i = 0; i < call.dh.size(); ++i) CHECK(std::isfinite(call.dh[i]));
  }
}

TEST_CASE("head losses by token: student equal to teacher gives consistency exactly 0") {
  Call call(33, 64, 2000, 3);
  call.o.teacher.hidden = &call.vh;
  call.o.options.task_scale = 0, call.o.options.diversity_scale = 0;
  for (const double temperature : {1.0, 2.0}) {
    call.o.options.temperature = temperature;
    call.run(2);
    CHECK(call.sums[1] == 0);
    for (int64_t i = 0; i < call.dh.size(); ++i) CHECK(call.dh[i] == 0);
  }
}

TEST_CASE(
    "head losses by token: logits far below another, and of another height than a teacher's") {
  // A column of W that all rows of h share moves a row's logits; the teacher's are elsewhere.
  Call call(32, 8, 1500, 1);
  for (int64_t j = 0; j < 1500; ++j) {
    call.w.data()[j * 8] = from_double<bf16>(j % 700 == 3 ? 100 : j % 3 ? 1 : -100);
  }
  for (int64_t i = 0; i < 32; ++i) {
    call.h.data()[i * 8] = from_double<bf16>(2), call.ht.data()[i * 8] = from_double<bf16>(-1);
  }
  Setting s;
  s.m = 32, s.c = 8, s.v = 1500, s.masks = false;
  const Array<uint8_t> none(std::vector<int64_t>{1});
  const Plain truth = plain_losses(call.h, call.ht, call.w, call.w, call.targets, none, s);
  call.o.dw = &call.vdw;
  call.run(2);
  for (int i = 0; i < 3; ++i) {
    CHECK(std::abs(call.sums[i] - truth.sums[i]) <= 1e-6 * (std::abs(truth.sums[i]) + 0.1));
  }
  check_near(call.dw, truth.dw, 1e-2);
}

TEST_CASE("head losses by token: the K largest by value, then by index, wherever they stand") {
  const int64_t v = 5000, k = 6;
  for (const int threads : {1, 4}) {
    Call call(40, 32, v);
    for (int64_t i = 0; i < call.h.size(); ++i) call.h.data()[i] = from_double<bf16>(0);
    for (int64_t i = 0; i < call.w.size(); ++i) call.w.data()[i] = from_double<bf16>(0);
    for (int64_t i = 0; i < 40; ++i) call.h.data()[i * 32] = from_double<bf16>(1);
    const auto chosen = [](int64_t j) {
      return j == 511 || j == 512 || j == 4999 || j == 2048 || j == 0;
    };
    for (int64_t j = 0; j < v; ++j) {
      call.w.data()[j * 32] = from_double<bf16>(chosen(j) ? 3 : static_cast<double>(j % 7) / 8);
    }
    call.o.teacher = {}, call.o.targets = nullptr, call.o.dw = &call.vdw;
    call.o.options = {
        .diversity_scale = 1, .temperature = 1, .entropy_temperature = 1, .entropy_top_k = k};
    call.run(threads);
    const double rest = std::exp(0.75 - 3.0), sum = 5 + rest;
    const double entropy = std::log(sum) - rest * (0.75 - 3.0) / sum;
    for (int64_t i = 0; i < 40; ++i) {
      CHECK(call.rows[3 * i + 2] == doctest::Approx(entropy).epsilon(1e-6));
    }
    for (int64_t j = 0; j < v; ++j) {
      CHECK((call.dw[j * 32] != 0) == (j == 6 || chosen(j)));  // of the many ties the first
    }
  }
}

TEST_CASE("head losses by token: a head in blocks is not read as if it were dense") {
  const balora_encoding sixteenths{
      "sixteenths", 1,
      [](const balora_encoding*, const void* data, int64_t first, int64_t count, float* values) {
        const auto* codes = static_cast<const int8_t*>(data);
        for (int64_t i = 0; i < count; ++i) values[i] = static_cast<float>(codes[first + i]) / 16;
      }};
  Call call(64, 32, 1500);
  std::vector<int8_t> codes;
  for (int64_t i = 0; i < call.w.size(); ++i) {
    codes.push_back(static_cast<int8_t>(i * 37 % 33 - 16));
    call.w.data()[i] = from_double<bf16>(codes.back() / 16.0);
  }
  View encoded = call.w.view();
  encoded.data = codes.data(), encoded.encoding = &sixteenths;
  for (const bool teachers : {false, true}) {  // that of the student, or that of the teacher
    CAPTURE(teachers);
    call.o.w = &call.vw, call.o.teacher.head = nullptr;
    call.run(2);
    const std::vector<double> sums = call.sums.values(), dh = call.dh.values();
    (teachers ? call.o.teacher.head : call.o.w) = &encoded;
    CHECK(rows_by_token(call.o) == 0);
    call.run(2);
    for (size_t i = 0; i < 3; ++i) CHECK(call.sums.values()[i] == doctest::Approx(sums[i]));
    check_near(call.dh, dh, 1.2e-2);
  }
}

TEST_CASE("head losses by token: a NaN stays in its row") {
  Call call(48, 32, 700);
  call.o.teacher.hidden = &call.vh;
  for (int64_t c = 0; c < 32; ++c) {
    call.h.data()[17 * 32 + c] = from_double<bf16>(std::numeric_limits<double>::quiet_NaN());
  }
  call.run(2);
  for (int64_t i = 0; i < 48; ++i) {
    for (int64_t t = 0; t < 3; ++t) CHECK(std::isnan(call.rows[3 * i + t]) == (i == 17));
    for (int64_t c = 0; c < 32; ++c) CHECK(std::isnan(call.dh[32 * i + c]) == (i == 17));
  }
}
