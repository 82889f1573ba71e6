// A teacher's summary and the head losses that take it, on the device: each row against the CPU's,
// the summary also against plain f64 loops, and the losses from a summary against those with the
// teacher's hidden states at hand.
#include "support/head_arrays.h"
#include "support/orders.h"

namespace {

using namespace balora;
using namespace balora::test;

DeviceTest::Row summary_of(const HeadArrays& a, const HeadSetting& s) {
  return [=](const KernelTable& k, Context* ctx, const DeviceTest::ViewOf& view) {
    return call(k.teacher_summary, ctx,
                {.teacher = live_teacher(a, s, view),
                 .w = view(a.w),
                 .summary = kept_teacher(a, view),
                 .options = s.options});
  };
}

DeviceTest::Row losses_of_kept(const HeadArrays& a, const HeadSetting& s) {
  return [=](const KernelTable& k, Context* ctx, const DeviceTest::ViewOf& view) {
    return call(k.head_losses, ctx,
                {.h = view(a.h),
                 .w = view(a.w),
                 .teacher = kept_teacher(a, view),
                 .targets = s.targets ? view(a.targets) : nullptr,
                 .regularized = s.masks ? view(a.regularized) : nullptr,
                 .scales = s.scaled ? view(a.scales) : nullptr,
                 .sums = view(a.sums),
                 .rows = view(a.rows),
                 .dh = view(a.dh),
                 .options = s.options});
  };
}

// Mean and entropy of q by plain f64 loops over the operands' stored values.
void plain_summary(const HeadArrays& a, const HeadSetting& s, std::vector<double>& mean,
                   std::vector<double>& entropy) {
  const Array& head = s.other_head ? a.wt : a.w;
  std::vector<double> q(static_cast<size_t>(s.v));
  mean.assign(static_cast<size_t>(s.m * s.c), 0);
  for (int64_t n = 0; n < s.m; ++n) {
    double largest = -1e300, sum = 0, dot = 0;
    for (int64_t j = 0; j < s.v; ++j) {
      double y = 0;
      for (int64_t c = 0; c < s.c; ++c) y += a.ht->host(n * s.c + c) * head->host(j * s.c + c);
      q[j] = y / s.options.temperature;
      largest = std::max(largest, q[j]);
    }
    for (double& x : q) {
      const double weight = std::exp(x - largest);
      sum += weight, dot += weight * (x - largest);
      x = weight;
    }
    entropy.push_back(std::log(sum) - dot / sum);
    for (int64_t j = 0; j < s.v; ++j) {
      for (int64_t c = 0; c < s.c; ++c) mean[n * s.c + c] += q[j] / sum * a.w->host(j * s.c + c);
    }
  }
}

template <typename T>
void check_setting(const HeadSetting& s, double tolerance, bool gradient = true) {
  CAPTURE(s.v);
  CAPTURE(s.options.entropy_top_k);
  constexpr bool kRounds = std::is_same_v<T, bf16>;
  DeviceTest t;
  HeadArrays a = make_head_arrays<T>(t, s);
  a.dw = nullptr;  // a summary is for a frozen head
  if (!gradient) a.dh = nullptr;
  t.both(summary_of(a, s));
  // The rounding error of q as two bf16.
  const double pair = kRounds ? 0x1p-16 : 0;
  check_near(a.mean->from_device(), a.mean->host_values(), tolerance + pair, "mean");
  t.check_close(a.entropy, tolerance);
  std::vector<double> mean, entropy;
  plain_summary(a, s, mean, entropy);
  check_near(a.mean->from_device(), mean, tolerance + pair, "mean of plain loops");
  check_near(a.entropy->from_device(), entropy, tolerance, "entropy of plain loops");

  t.both(losses_of_kept(a, s));  // both from the CPU's summary
  t.check_close(a.sums, tolerance);
  t.check_close(a.rows, tolerance);
  // dZ is rounded to bf16 on the way to dH, and dH on its way out.
  const double rounding = kRounds ? 4 * epsilon_of<T>() : 2 * epsilon_of<T>();
  double taken = 0;  // the largest of what leaves dH as mu
  for (const double mu : mean) taken = std::max(taken, std::abs(mu));
  taken *= s.options.consistency_scale * s.options.temperature;
  if (gradient) {
    check_near(a.dh->from_device(), a.dh->host_values(), tolerance + rounding, "dh", taken);
  }
  const std::vector<double> sums = a.sums->from_device();
  const std::vector<double> dh = gradient ? a.dh->from_device() : std::vector<double>();

  REQUIRE(t.on_device(head_losses_of(a, s)) == 0);
  double logits = 0;  // the consistency is lse(z/T) less T times these
  for (int64_t i = 0; i < s.m * s.c; ++i) logits += std::abs(a.h->host(i) * mean[i]);
  check_near(sums, a.sums->from_device(), 2 * tolerance + pair, "the loss of a live teacher",
             s.options.temperature * logits);
  if (gradient) {
    check_near(dh, a.dh->from_device(), tolerance + rounding, "dh of a live teacher", taken);
  }
}

template <typename T>
void check_settings(double tolerance) {
  HeadSetting s;
  check_setting<T>(s, tolerance);
  s.options.chunk_bytes = 1;  // one row at a time
  s.other_head = true;
  check_setting<T>(s, tolerance);
  s.options.chunk_bytes = 900;  // a few
  s.options.entropy_top_k = 0;
  s.c = 13;
  check_setting<T>(s, tolerance);
  s = HeadSetting{};
  s.scaled = true;
  check_setting<T>(s, tolerance);
  s = HeadSetting{};
  s.masks = false;
  s.m = 3, s.v = 4001;  // several packs a thread
  check_setting<T>(s, tolerance);
  s.targets = false;
  s.options.entropy_top_k = 1000;
  s.options.entropy_temperature = 1.7;
  check_setting<T>(s, tolerance);
  s = HeadSetting{};
  s.options.entropy_top_k = -1;
  check_setting<T>(s, tolerance, false);
  s = HeadSetting{};
  s.m = s.v = s.c = 1;
  s.options.entropy_top_k = 0;
  check_setting<T>(s, tolerance);
}

TEST_CASE_TEMPLATE("a teacher's summary and the losses from it agree with the CPU", T,
                   BALORA_FLOAT_TYPES) {
  check_settings<T>(kHeadTolerance<T>);
}

// Plain f32 sums over a vocabulary of this size are off by 1e-5.
TEST_CASE("a teacher's entropy over a large vocabulary is better than f32 sums") {
  DeviceTest t;
  HeadSetting s;
  s.m = 2, s.c = 2, s.v = 49152;
  const HeadArrays a = make_head_arrays<float>(t, s);
  for (int64_t i = 0; i < a.w->size(); ++i) a.w->set(i, 1e-3 * a.w->host(i));
  REQUIRE(t.on_device(summary_of(a, s)) == 0);
  std::vector<double> mean, entropy;
  plain_summary(a, s, mean, entropy);
  for (int64_t n = 0; n < s.m; ++n) {
    CHECK(std::abs(a.entropy->from_device()[n] - entropy[n]) < 3e-7);
  }
}

TEST_CASE("a teacher's summary and the losses from it give the same bits again") {
  DeviceTest t;
  HeadSetting s;
  s.m = 3, s.v = 4001;
  const HeadArrays a = make_head_arrays<bf16>(t, s);
  t.both(summary_of(a, s));  // the losses start from the CPU's
  check_orders([&] {
    REQUIRE(t.on_device(summary_of(a, s)) == 0);
    std::vector<double> out = values_of({a.mean, a.entropy});
    REQUIRE(t.on_device(losses_of_kept(a, s)) == 0);  // from the CPU's summary again
    for (const double value : values_of({a.sums, a.dh})) out.push_back(value);
    return out;
  });
}

TEST_CASE("losses from a summary name a target outside the vocabulary") {
  DeviceTest t;
  const HeadSetting s;
  const HeadArrays a = make_head_arrays<float>(t, s);
  t.both(summary_of(a, s));
  a.targets->set(4, 37);
  CHECK(t.on_device(losses_of_kept(a, s)) == 0);
  CHECK(t.synchronize() != 0);
  CHECK(t.error() ==
        "head_losses: target 37 of row 4 is not a class id below 37 (-100 marks a row to ignore)");
}

}  // namespace
