// The fused head losses on the device against the CPU's row and, where the two may differ by more
// than their rounding, against it in f64: every type, chunks of one row, ties and floods of equal
// logits, large K, soft-capping, a second head, masks, and targets outside the vocabulary.
#include "support/head_arrays.h"
#include "support/workspace_spy.h"

namespace {

using namespace balora;
using namespace balora::test;

template <typename T>
void check_setting(const HeadSetting& s, double tolerance) {
  CAPTURE(s.v);
  CAPTURE(s.options.entropy_top_k);
  DeviceTest t;
  const HeadArrays a = make_head_arrays<T>(t, s);
  t.both(head_losses_of(a, s));
  t.check_close(a.sums, tolerance);
  t.check_close(a.rows, tolerance);
  // dZ is rounded to T on the way to dH and dW.
  const double rounding = std::is_same_v<T, bf16> ? 4 * epsilon_of<T>() : 2 * epsilon_of<T>();
  check_near(a.dh->from_device(), a.dh->host_values(), tolerance + rounding, "dh");
  check_near(a.dw->from_device(), a.dw->host_values(),
             tolerance + (std::is_same_v<T, bf16> ? rounding : 0), "dw");
  const std::vector<double> before = a.sums->from_device();
  t.both(head_losses_of(a.without_gradients(), s));
  CHECK(a.sums->from_device() == before);  // values alone are the same bits
}

template <typename T>
void check_settings(double tolerance) {
  HeadSetting s;
  check_setting<T>(s, tolerance);
  s.options.chunk_bytes = 1;  // one row at a time
  s.other_head = true;
  check_setting<T>(s, tolerance);
  s.options.chunk_bytes = 4000;
  s.options.softcap = 6;
  check_setting<T>(s, tolerance);
  s.options.entropy_top_k = 0;
  check_setting<T>(s, tolerance);
  s = HeadSetting{};
  s.scaled = true;
  check_setting<T>(s, tolerance);
  s.options.entropy_top_k = 0;
  check_setting<T>(s, tolerance);
  s = HeadSetting{};
  s.teacher = s.masks = false;
  s.v = 4001;  // several packs a thread
  check_setting<T>(s, tolerance);
  s.options.entropy_top_k = 90;
  s.options.entropy_temperature = 1.7;
  check_setting<T>(s, tolerance);
  s.options.entropy_top_k = 1000;  // by radix selection
  s.options.softcap = 5;
  check_setting<T>(s, tolerance);
  s = HeadSetting{};
  s.targets = false;
  s.m = s.v = 1;
  check_setting<T>(s, tolerance);
}

TEST_CASE_TEMPLATE("head losses agree with the CPU", T, BALORA_FLOAT_TYPES) {
  check_settings<T>(kHeadTolerance<T>);
}

// Bytes that the row takes with one row of logits in each chunk.
template <typename T>
int64_t scratch_of_chunks(HeadSetting s) {
  s.options.chunk_bytes = 1;
  DeviceTest t;
  const HeadArrays a = make_head_arrays<T>(t, s);
  const WorkspaceSpy spy(t);
  REQUIRE(t.on_device(head_losses_of(a, s)) == 0);
  REQUIRE(t.synchronize() == 0);
  return spy.total();
}

TEST_CASE("head losses: all chunks of a head in f16 are widened in one place") {
  const HeadSetting s;
  const int64_t head = s.v * s.c * static_cast<int64_t>(sizeof(float));
  // Beside it a chunk of dh in f32; f32 has neither.
  CHECK(scratch_of_chunks<f16>(s) - scratch_of_chunks<float>(s) <= 2 * head);
}

TEST_CASE("head losses take the lower index of equal logits into the top K") {
  for (const int64_t k : {1, 5, 40, 200}) {
    HeadSetting s;
    s.equal = true;
    s.v = 450;
    s.options = {
        .diversity_scale = 1, .temperature = 2, .entropy_temperature = 1, .entropy_top_k = k};
    check_setting<float>(s, kHeadTolerance<float>);
    s.v = 4500;  // 1,500 logits of the largest value: more than the candidates hold
    check_setting<double>(s, kHeadTolerance<double>);
  }
}

TEST_CASE("head losses: student equal to teacher gives consistency exactly 0") {
  DeviceTest t;
  const HeadSetting s{.m = 5,
                      .c = 16,
                      .v = 4999,
                      .options = {.consistency_scale = 1,
                                  .temperature = 2,
                                  .entropy_temperature = 1,
                                  .entropy_top_k = -1},
                      .masks = false,
                      .targets = false};
  const HeadArrays a = make_head_arrays<bf16>(t, s);
  REQUIRE(t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.head_losses, ctx,
                {.h = view(a.h),
                 .w = view(a.w),
                 .teacher = {.kind = BALORA_TEACHER_LIVE, .hidden = view(a.h)},
                 .sums = view(a.sums),
                 .rows = view(a.rows),
                 .dh = view(a.dh),
                 .dw = view(a.dw),
                 .options = s.options});
  }) == 0);
  for (const Array& array : {a.rows, a.dh, a.dw}) {
    for (const double value : array->from_device()) REQUIRE(value == 0);
  }
}

// Plain f32 sums over a vocabulary of this size are off by 1e-5.
TEST_CASE("head losses sum a large vocabulary better than f32") {
  DeviceTest t;
  HeadSetting s;
  s.m = 2, s.c = 2, s.v = 49152;
  s.options = {.task_scale = 1, .temperature = 2, .entropy_temperature = 1, .entropy_top_k = 20};
  s.teacher = s.masks = false;
  const HeadArrays a = make_head_arrays<float>(t, s);
  for (int64_t i = 0; i < a.w->size(); ++i) a.w->set(i, 1e-3 * a.w->host(i));
  REQUIRE(t.on_device(head_losses_of(a, s)) == 0);
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
  HeadSetting s;
  const HeadArrays a = make_head_arrays<float>(t, s);
  a.targets->set(4, 37);
  CHECK(t.on_device(head_losses_of(a, s)) == 0);
  CHECK(t.synchronize() != 0);
  CHECK(t.error() ==
        "head_losses: target 37 of row 4 is not a class id below 37 (-100 marks a row to ignore)");
}

TEST_CASE("head losses of logits that are no numbers are no numbers") {
  for (const int64_t k : {0, 5, 200}) {
    DeviceTest t;
    HeadSetting s;
    s.v = 4001;
    s.options.entropy_top_k = k;
    const HeadArrays a = make_head_arrays<float>(t, s);
    a.h->set(0, std::nan(""));
    REQUIRE(t.on_device(head_losses_of(a, s)) == 0);
    const std::vector<double> rows = a.rows->from_device();
    CHECK(std::isnan(rows[0]));
    CHECK(std::isnan(rows[1]));
    CHECK(!std::isnan(rows[3 + 1]));  // the next row's
  }
}

TEST_CASE("head losses give the same bits again") {
  DeviceTest t;
  HeadSetting s;
  s.m = 3, s.v = 4001;
  const HeadArrays a = make_head_arrays<bf16>(t, s);
  std::vector<double> first[3];
  for (int pass = 0; pass < 2; ++pass) {
    REQUIRE(t.on_device(head_losses_of(a, s)) == 0);
    int i = 0;
    for (const Array& array : {a.rows, a.dh, a.dw}) {
      if (pass == 0) first[i] = array->from_device();
      CHECK(array->from_device() == first[i++]);
    }
  }
}

}  // namespace
