// Operands of the head's rows, for the tests of losses with a teacher at hand and with its summary.
#pragma once
#include "support/device_test.h"

namespace balora::test {

struct HeadSetting {
  int64_t m = 9, c = 8, v = 37;
  HeadOptions options{.task_scale = 0.3,
                      .consistency_scale = 0.2,
                      .diversity_scale = 0.15,
                      .temperature = 2.0,
                      .entropy_temperature = 1.0,
                      .entropy_top_k = 5};
  bool teacher = true, other_head = false, masks = true, targets = true;
  bool equal = false;   // runs of equal logits, also among the largest
  bool scaled = false;  // the scales lie on the device, too
};

// The largest difference of the device from the CPU as a share of the largest value: f32 sums are
// in another order, as are those in f64.
template <typename T>
constexpr double kHeadTolerance = std::is_same_v<T, double> ? 1e-12 : 4e-6;

// An output that is null is not wanted.
struct HeadArrays {
  Array h, ht, w, wt, targets, regularized, scales;
  Array sums, rows, dh, dw;
  Array mean, entropy;  // the teacher's summary

  HeadArrays without_gradients() const {
    HeadArrays values = *this;
    values.rows = values.dh = values.dw = nullptr;
    return values;
  }
};

template <typename T>
HeadArrays make_head_arrays(DeviceTest& t, const HeadSetting& s) {
  using Sum = Acc<T>;
  HeadArrays a;
  a.h = t.random<T>({s.m, s.c}, 2), a.ht = t.random<T>({s.m, s.c}, 2);
  a.w = t.random<T>({s.v, s.c}), a.wt = t.random<T>({s.v, s.c});
  a.targets = t.empty<int32_t>({s.m}), a.regularized = t.empty<uint8_t>({s.m});
  for (int64_t n = 0; n < s.m; ++n) {
    a.targets->set(n, n % 3 == 1 ? -100 : static_cast<double>(n * 7 % s.v));
    a.regularized->set(n, n % 4 != 2);
  }
  for (int64_t i = 0; s.equal && i < s.v * s.c; ++i) a.w->set(i, a.w->host(i % (3 * s.c)));
  a.scales = t.values<double>({3}, {1.3, 0.7, 1.9});
  a.sums = t.empty<double>({4}), a.rows = t.empty<double>({s.m, 3});
  a.dh = t.empty<T>({s.m, s.c}), a.dw = t.empty<Sum>({s.v, s.c});
  a.mean = t.empty<Sum>({s.m, s.c}), a.entropy = t.empty<double>({s.m});
  return a;
}

// A teacher of the arrays by its hidden states, and by its summary.
inline balora_teacher live_teacher(const HeadArrays& a, const HeadSetting& s,
                                   const DeviceTest::ViewOf& view) {
  if (!s.teacher) return {};
  return {.kind = BALORA_TEACHER_LIVE,
          .hidden = view(a.ht),
          .head = s.other_head ? view(a.wt) : nullptr};
}
inline balora_teacher kept_teacher(const HeadArrays& a, const DeviceTest::ViewOf& view) {
  return {.kind = BALORA_TEACHER_SUMMARY, .mean = view(a.mean), .entropy = view(a.entropy)};
}

inline DeviceTest::Row head_losses_of(const HeadArrays& a, const HeadSetting& s) {
  return [=](const KernelTable& k, Context* ctx, const DeviceTest::ViewOf& view) {
    return call(k.head_losses, ctx,
                {.h = view(a.h),
                 .w = view(a.w),
                 .teacher = live_teacher(a, s, view),
                 .targets = s.targets ? view(a.targets) : nullptr,
                 .regularized = s.masks ? view(a.regularized) : nullptr,
                 .scales = s.scaled ? view(a.scales) : nullptr,
                 .sums = view(a.sums),
                 .rows = view(a.rows),
                 .dh = view(a.dh),
                 .dw = view(a.dw),
                 .options = s.options});
  };
}

// |got - want| <= tolerance times the largest of want, or of the terms that it is a difference of.
inline void check_near(const std::vector<double>& got, const std::vector<double>& want,
                       double tolerance, const char* what, double terms = 0) {
  double largest = terms, worst = 0;
  REQUIRE(got.size() == want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    largest = std::max(largest, std::abs(want[i]));
    const double error = std::abs(got[i] - want[i]);
    worst = std::max(worst, std::isnan(error) ? 1e300 : error);
  }
  const bool near = worst <= tolerance * largest + tolerance * 1e-3;
  CHECK_MESSAGE(near, what, " is off by ", worst, " of ", largest);
}

}  // namespace balora::test
