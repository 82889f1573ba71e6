// The SVD regularizer's rows on the device against the CPU's, which are tested against the dense
// singular values and central differences: every form (wide, tall, tiles by tokens and by rows,
// block Krylov), both norms, soft-capping, narrow types, zero and rank-one logits.
#include "support/device_test.h"
#include "support/workspace_spy.h"

namespace {

using namespace balora;
using namespace balora::test;

struct Case {
  int64_t m, c, v, k;
  bool nuclear;
  double softcap;
};

// |device - cpu| <= tolerance times the largest.
void check_near(const Array& array, double tolerance, const char* what) {
  const std::vector<double> got = array->from_device(), want = array->host_values();
  double largest = 0, worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    largest = std::max(largest, std::abs(want[i]));
    const double error = std::abs(got[i] - want[i]);
    worst = std::max(worst, std::isnan(error) ? 1e300 : error);
  }
  const bool near = worst <= tolerance * largest + 1e-13;
  CHECK_MESSAGE(near, what, " is off by ", worst, " of ", largest);
}

template <typename T>
void check_case(const Case& t, double value_tolerance, double tolerance) {
  CAPTURE(t.m);
  CAPTURE(t.c);
  CAPTURE(t.v);
  CAPTURE(t.k);
  CAPTURE(t.nuclear);
  CAPTURE(t.softcap);
  DeviceTest d;
  const Array h = d.random<T>({t.m, t.c}), w = d.random<T>({t.v, t.c}, 2);
  const Array value = d.empty<double>({}), dh = d.empty<T>({t.m, t.c}),
              dw = d.empty<Acc<T>>({t.v, t.c}), g = d.empty<double>({t.c, t.c});
  const double rounding = 2 * epsilon_of<T>();
  if (t.softcap == 0) {
    REQUIRE(d.on_cpu([&](const KernelTable& k, Context* ctx, const auto& view) {
      return call(k.gram, ctx, {.a = view(w), .g = view(g), .accumulate = 0});
    }) == 0);
    for (const bool gradient : {true, false}) {
      if (t.m > 100 && !gradient) continue;  // slow on the emulated device
      d.both([&](const KernelTable& k, Context* ctx, const auto& view) {
        return call(k.svd_ratio_gram, ctx,
                    {.h = view(h),
                     .g = view(g),
                     .value = view(value),
                     .dh = gradient ? view(dh) : nullptr,
                     .k = t.k,
                     .nuclear = t.nuclear});
      });
      d.check_close(value, 1e-11);
      if (gradient) check_near(dh, 1e-7 + rounding, "dh of the Gram form");
    }
  }
  d.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.svd_ratio_tiles, ctx,
                {.h = view(h),
                 .w = view(w),
                 .value = view(value),
                 .dh = view(dh),
                 .dw = view(dw),
                 .k = t.k,
                 .nuclear = t.nuclear,
                 .softcap = t.softcap,
                 .chunk_bytes = t.m * 16 * 5});
  });
  d.check_close(value, value_tolerance);
  check_near(dh, tolerance + rounding, "dh of the tiles");
  check_near(dw, tolerance, "dw of the tiles");
}

const Case kCases[] = {
    {7, 16, 33, 3, false, 0}, {7, 16, 33, 3, true, 0},
    {31, 9, 40, 4, false, 0},                            // more rows than channels
    {31, 9, 40, 4, true, 0},  {50, 9, 13, 4, false, 0},  // more rows than tokens
    {50, 20, 13, 4, true, 0},                            // head of deficient column rank
    {12, 9, 33, 4, false, 5}, {50, 9, 13, 4, true, 3},
    {1, 5, 9, 3, false, 0},  // constant -1
};

TEST_CASE("svd ratio: Gram and tile forms in f64") {
  for (const Case& t : kCases) check_case<double>(t, 1e-11, 1e-7);
}

TEST_CASE("svd ratio: narrow logits") {
  // Tiles of f32 logits: those of the two devices differ by their rounding.
  for (const Case& t : {kCases[0], kCases[2], kCases[4], kCases[6], kCases[7]}) {
    for_each_type<float, bf16, f16>([&]<typename T>() { check_case<T>(t, 2e-6, 2e-5); });
  }
}

TEST_CASE("svd ratio: the block Krylov form where it takes over") {
  check_case<double>({210, 230, 240, 4, false, 0}, 1e-11, 1e-7);
}

TEST_CASE("svd ratio: the iteration converges for neighbouring values too") {
  DeviceTest d;  // one block of the iteration is of order 64
  const Array h = d.random<double>({260, 200}), w = d.random<double>({300, 200});
  const Array value = d.empty<double>({}), dh = d.empty<double>({260, 200});
  const Array g = d.empty<double>({200, 200});
  REQUIRE(d.on_cpu([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.gram, ctx, {.a = view(w), .g = view(g), .accumulate = 0});
  }) == 0);
  d.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(
        k.svd_ratio_gram, ctx,
        {.h = view(h), .g = view(g), .value = view(value), .dh = view(dh), .k = 10, .nuclear = 0});
  });
  d.check_close(value, 1e-11);
  check_near(dh, 1e-7, "dh");
}

TEST_CASE("svd ratio: zero logits give value 0 and gradient 0") {
  for (const int64_t m : {4, 200}) {
    DeviceTest d;
    const Array h = d.random<double>({m, 200}, 0), g = d.random<double>({200, 200});
    const Array value = d.empty<double>({}), dh = d.empty<double>({m, 200});
    for (const int nuclear : {0, 1}) {
      if (nuclear && m > 4) continue;  // slow on the emulated device
      const int32_t status = d.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
        return call(k.svd_ratio_gram, ctx,
                    {.h = view(h),
                     .g = view(g),
                     .value = view(value),
                     .dh = view(dh),
                     .k = 2,
                     .nuclear = nuclear});
      });
      REQUIRE(status == 0);
      REQUIRE(d.synchronize() == 0);
      CHECK(value->from_device()[0] == 0);
      for (const double element : dh->from_device()) REQUIRE(element == 0);
    }
  }
}

TEST_CASE("svd ratio: components below the rank carry no gradient") {
  for (const int64_t m : {4, 200}) {  // dense, and by iteration in a space of dimension one
    DeviceTest d;
    std::vector<double> values(static_cast<size_t>(m * 200), 0.0), identity(200 * 200, 0.0);
    for (int64_t i = 0; i < m; ++i) values[static_cast<size_t>(200 * i)] = 1 + i % 7;
    for (size_t i = 0; i < 200; ++i) identity[i * 201] = 1;
    const Array h = d.values<double>({m, 200}, values), g = d.values<double>({200, 200}, identity);
    const Array value = d.empty<double>({}), dh = d.empty<double>({m, 200});
    const int32_t status = d.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
      return call(
          k.svd_ratio_gram, ctx,
          {.h = view(h), .g = view(g), .value = view(value), .dh = view(dh), .k = 3, .nuclear = 0});
    });
    REQUIRE(status == 0);
    REQUIRE(d.synchronize() == 0);
    CHECK(std::abs(value->from_device()[0] + 1) < 1e-7);
    for (const double element : dh->from_device()) REQUIRE(std::abs(element) < 1e-7);
  }
}

// Bytes that the tiles take with one token of the vocabulary in each.
template <typename T>
int64_t scratch_of_tiles(const Case& t) {
  DeviceTest d;
  const Array h = d.random<T>({t.m, t.c}), w = d.random<T>({t.v, t.c}, 2);
  const Array value = d.empty<double>({}), dh = d.empty<T>({t.m, t.c}),
              dw = d.empty<float>({t.v, t.c});
  const WorkspaceSpy spy(d);
  REQUIRE(d.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.svd_ratio_tiles, ctx,
                {.h = view(h),
                 .w = view(w),
                 .value = view(value),
                 .dh = view(dh),
                 .dw = view(dw),
                 .k = t.k,
                 .nuclear = t.nuclear,
                 .softcap = t.softcap,
                 .chunk_bytes = 1});
  }) == 0);
  REQUIRE(d.synchronize() == 0);
  return spy.total();
}

TEST_CASE("svd ratio: all tiles of a narrow head are widened in one place") {
  const Case t = kCases[0];
  const int64_t tile = t.m * t.c * static_cast<int64_t>(sizeof(float));  // the largest, widened
  // Beside it the gradient in f32 and the first, smaller tile; f32 has none of the three.
  CHECK(scratch_of_tiles<bf16>(t) - scratch_of_tiles<float>(t) <= 3 * tile);
}

TEST_CASE("svd ratio: hidden states that are no numbers are reported") {
  DeviceTest d;
  const Array h = d.random<float>({7, 9}), w = d.random<float>({20, 9});
  const Array value = d.empty<double>({}), dh = d.empty<float>({7, 9});
  h->set(3, std::nan(""));
  CHECK(d.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.svd_ratio_tiles, ctx,
                {.h = view(h),
                 .w = view(w),
                 .value = view(value),
                 .dh = view(dh),
                 .k = 2,
                 .nuclear = 0,
                 .softcap = 0,
                 .chunk_bytes = 0});
  }) == 0);
  CHECK(d.synchronize() != 0);
  CHECK(d.error().rfind("svd_ratio_tiles: ", 0) == 0);
}

}  // namespace
