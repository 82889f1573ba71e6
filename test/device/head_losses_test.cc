// The fused head losses on the device against the CPU's row and, where the two may differ by more
// than their rounding, against it in f64: every type, chunks of one row, ties and floods of equal
// logits, large K, soft-capping, a second head, masks, and targets outside the vocabulary.
#include "support/device_test.h"

namespace {

using namespace balora;
using namespace balora::test;

template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

struct Setting {
  int64_t m = 9, c = 8, v = 37;
  HeadOptions options{0.3, 0.2, 0.15, 2.0, 1.0, 0.0, 5, 0};
  bool teacher = true, other_head = false, masks = true, targets = true, equal = false;
};

struct Arrays {
  Array h, ht, w, wt, targets, regularized, sums, rows, dh, dw;
};

template <typename T>
Arrays make_arrays(DeviceTest& t, const Setting& s) {
  Arrays a;
  a.h = t.random<T>({s.m, s.c}, 2), a.ht = t.random<T>({s.m, s.c}, 2);
  a.w = t.random<T>({s.v, s.c}), a.wt = t.random<T>({s.v, s.c});
  a.targets = t.empty<int32_t>({s.m}), a.regularized = t.empty<uint8_t>({s.m});
  for (int64_t n = 0; n < s.m; ++n) {
    a.targets->set(n, n % 3 == 1 ? -100 : static_cast<double>(n * 7 % s.v));
    a.regularized->set(n, n % 4 != 2);
  }
  // Runs of equal logits, also among the largest.
  for (int64_t i = 0; s.equal && i < s.v * s.c; ++i) a.w->set(i, a.w->host(i % (3 * s.c)));
  a.sums = t.empty<double>({4}), a.rows = t.empty<double>({s.m, 3});
  a.dh = t.empty<T>({s.m, s.c}), a.dw = t.empty<Accumulator<T>>({s.v, s.c});
  return a;
}

DeviceTest::Row row_of(const Arrays& a, const Setting& s, bool gradients) {
  return [=](const KernelTable& k, Context* ctx, const DeviceTest::ViewOf& view) {
    return k.head_losses(ctx, view(a.h), s.teacher ? view(a.ht) : nullptr, view(a.w),
                         s.other_head ? view(a.wt) : nullptr, s.targets ? view(a.targets) : nullptr,
                         s.masks ? view(a.regularized) : nullptr, view(a.sums),
                         gradients ? view(a.rows) : nullptr, gradients ? view(a.dh) : nullptr,
                         gradients ? view(a.dw) : nullptr, &s.options);
  };
}

// |device - cpu| <= tolerance times the largest.
void check_near(const Array& array, double tolerance, const char* what) {
  const std::vector<double> got = array->from_device(), want = array->host_values();
  double largest = 0, worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    largest = std::max(largest, std::abs(want[i]));
    const double error = std::abs(got[i] - want[i]);
    worst = std::max(worst, std::isnan(error) ? 1e300 : error);
  }
  const bool near = worst <= tolerance * largest + tolerance * 1e-3;
  CHECK_MESSAGE(near, what, " is off by ", worst, " of ", largest);
}

template <typename T>
void check_setting(const Setting& s, double tolerance) {
  CAPTURE(s.v);
  CAPTURE(s.options.entropy_top_k);
  DeviceTest t;
  const Arrays a = make_arrays<T>(t, s);
  t.both(row_of(a, s, true));
  t.check_close(a.sums, tolerance);
  t.check_close(a.rows, tolerance);
  // dZ is rounded to T on the way to dH and dW.
  const double rounding = std::is_same_v<T, bf16> ? 4 * epsilon_of<T>() : 2 * epsilon_of<T>();
  check_near(a.dh, tolerance + rounding, "dh");
  check_near(a.dw, tolerance + (std::is_same_v<T, bf16> ? rounding : 0), "dw");
  const std::vector<double> before = a.sums->from_device();
  t.both(row_of(a, s, false));
  CHECK(a.sums->from_device() == before);  // values alone are the same bits
}

template <typename T>
void check_settings(double tolerance) {
  Setting s;
  check_setting<T>(s, tolerance);
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
  s.v = 4001;  // several packs a thread
  check_setting<T>(s, tolerance);
  s.options.entropy_top_k = 90;
  s.options.entropy_temperature = 1.7;
  check_setting<T>(s, tolerance);
  s.options.entropy_top_k = 1000;  // by radix selection
  s.options.softcap = 5;
  check_setting<T>(s, tolerance);
  s = Setting{};
  s.targets = false;
  s.m = s.v = 1;
  check_setting<T>(s, tolerance);
}

TEST_CASE("head losses in f64") {
  check_settings<double>(1e-12);
}
TEST_CASE("head losses in f32") {
  check_settings<float>(4e-6);
}
TEST_CASE("head losses in bf16") {
  check_settings<bf16>(4e-6);
}
TEST_CASE("head losses in f16") {
  check_settings<f16>(4e-6);
}

TEST_CASE("head losses take the lower index of equal logits into the top K") {
  for (const int64_t k : {1, 5, 40, 200}) {
    Setting s;
    s.equal = true;
    s.v = 450;
    s.options = {0, 0, 1, 2, 1, 0, k, 0};
    check_setting<float>(s, 4e-6);
    s.v = 4500;  // 1,500 logits of the largest value: more than the candidates hold
    check_setting<double>(s, 1e-12);
  }
}

TEST_CASE("head losses: student equal to teacher gives consistency exactly 0") {
  DeviceTest t;
  const Setting s{5, 16, 4999, {0, 1, 0, 2, 1, 0, -1, 0}, true, false, false, false};
  const Arrays a = make_arrays<bf16>(t, s);
  REQUIRE(t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
    return k.head_losses(ctx, view(a.h), view(a.h), view(a.w), nullptr, nullptr, nullptr,
                         view(a.sums), view(a.rows), view(a.dh), view(a.dw), &s.options);
  }) == 0);
  for (const Array& array : {a.rows, a.dh, a.dw}) {
    for (const double value : array->from_device()) REQUIRE(value == 0);
  }
}

// Plain f32 sums over a vocabulary of this size are off by 1e-5.
TEST_CASE("head losses sum a large vocabulary better than f32") {
  DeviceTest t;
  Setting s;
  s.m = 2, s.c = 2, s.v = 49152;
  s.options = {1, 0, 0, 2, 1, 0, 20, 0};
  s.teacher = s.masks = false;
  const Arrays a = make_arrays<float>(t, s);
  for (int64_t i = 0; i < a.w->size(); ++i) a.w->set(i, 1e-3 * a.w->host(i));
  REQUIRE(t.on_device(row_of(a, s, true)) == 0);
  const double x0 = a.h->host(0), x1 = a.h->host(1);
  double sum = 0, target = 0;
  for (int64_t j = 0; j < s.v; ++j) {
    const double z = x0 * a.w->host(2 * j) + x1 * a.w->host(2 * j + 1);
    sum += std::exp(z);
    if (j == 0) target = z;
  }
  CHECK(std::abs(a.rows->from_device()[0] - (std::log(sum) - target)) < 3e-7);
}

TEST_CASE("head losses: a target outside the vocabulary is named when the device is waited for") {
  DeviceTest t;
  Setting s;
  const Arrays a = make_arrays<float>(t, s);
  a.targets->set(4, 37);
  CHECK(t.on_device(row_of(a, s, true)) == 0);
  CHECK(t.synchronize() != 0);
  CHECK(t.error() ==
        "head_losses: target 37 of row 4 is not a class id below 37 (-100 marks a row to ignore)");
}

TEST_CASE("head losses of logits that are no numbers are no numbers") {
  for (const int64_t k : {0, 5, 200}) {
    DeviceTest t;
    Setting s;
    s.v = 4001;
    s.options.entropy_top_k = k;
    const Arrays a = make_arrays<float>(t, s);
    a.h->set(0, std::nan(""));
    REQUIRE(t.on_device(row_of(a, s, true)) == 0);
    const std::vector<double> rows = a.rows->from_device();
    CHECK(std::isnan(rows[0]));
    CHECK(std::isnan(rows[1]));
    CHECK(!std::isnan(rows[3 + 1]));  // the next row's
  }
}

TEST_CASE("head losses give the same bits again") {
  DeviceTest t;
  Setting s;
  s.m = 3, s.v = 4001;
  const Arrays a = make_arrays<bf16>(t, s);
  std::vector<double> first[3];
  for (int pass = 0; pass < 2; ++pass) {
    REQUIRE(t.on_device(row_of(a, s, true)) == 0);
    int i = 0;
    for (const Array& array : {a.rows, a.dh, a.dw}) {
      if (pass == 0) first[i] = array->from_device();
      CHECK(array->from_device() == first[i++]);
    }
  }
}

}  // namespace
