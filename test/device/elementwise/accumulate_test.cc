// accumulate and check_finite on the device against the CPU: every pair of float types, odd sizes,
// addresses that fit no vector access.
#include <limits>

#include "support/device_test.h"
#include "support/strided_views.h"

namespace {

using namespace balora;
using namespace balora::test;

template <typename S, typename D>
void check_accumulate() {
  for (const int64_t n : {int64_t{0}, int64_t{1}, int64_t{33}, int64_t{5001}}) {
    for (const double beta : {0.0, 1.0, -0.75}) {
      for (const int64_t skip : {int64_t{0}, std::min<int64_t>(n, 3)}) {
        CAPTURE(n);
        CAPTURE(beta);
        DeviceTest t;
        const Array source = t.random<S>({n}), sum = beta == 0 ? t.empty<D>({n}) : t.random<D>({n});
        t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
          const View s = from(*view(source), skip), d = from(*view(sum), skip);
          return call(k.accumulate, ctx, {.source = &s, .destination = &d, .beta = beta});
        });
        t.check_close(sum, 2 * epsilon_of<D>());
      }
    }
  }
}

template <typename D>
void check_sources() {
  for_each_type<BALORA_FLOAT_TYPES>([]<typename S>() { check_accumulate<S, D>(); });
}

TEST_CASE_TEMPLATE("accumulate agrees with the CPU for every pair of types", T,
                   BALORA_FLOAT_TYPES) {
  check_sources<T>();
}

template <typename T>
void check_finite_of() {
  for (const int64_t n : {int64_t{0}, int64_t{1}, int64_t{33}, int64_t{9001}}) {
    for (const double bad :
         {1.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
      DeviceTest t;
      const Array x = t.random<T>({n});
      if (n > 0) x->set(n - 1, bad);
      int32_t device = -1, cpu = -1;
      REQUIRE(t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
        return call(k.check_finite, ctx, {.x = view(x), .finite = &device});
      }) == 0);
      REQUIRE(t.on_cpu([&](const KernelTable& k, Context* ctx, const auto& view) {
        return call(k.check_finite, ctx, {.x = view(x), .finite = &cpu});
      }) == 0);
      CHECK(device == cpu);
      CHECK(device == (n == 0 || bad == 1.0 ? 1 : 0));
    }
  }
}

TEST_CASE_TEMPLATE("check_finite finds one bad element among many", T, BALORA_FLOAT_TYPES) {
  check_finite_of<T>();
}

TEST_CASE("check_finite refuses a strided view") {
  DeviceTest t;
  const Array x = t.random<float>({4, 6});
  int32_t finite = 0;
  CHECK(t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
    const View turned = permuted(*view(x), {1, 0});
    return call(k.check_finite, ctx, {.x = &turned, .finite = &finite});
  }) != 0);
  CHECK(t.error().find("check_finite: the view must be contiguous") != std::string::npos);
}

}  // namespace
