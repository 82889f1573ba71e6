// topk on the device, bit for bit as on the CPU: ties, NaN, both zeros and infinities, K up to the
// whole row and beyond what the first bound serves, rows on which that bound
// fails, and a vocabulary.
#include <limits>

#include "support/device_test.h"

namespace {

using namespace balora;
using namespace balora::test;

void check(DeviceTest& t, const Array& x, int64_t rows, int64_t k) {
  CAPTURE(x->size() / rows);
  CAPTURE(k);
  const Array values = t.make(x->dtype(), {rows, k}), columns = t.empty<int32_t>({rows, k});
  t.both([&](const KernelTable& table, Context* ctx, const auto& view) {
    return call(table.topk, ctx, {.x = view(x), .values = view(values), .columns = view(columns)});
  });
  t.check_equal(values);
  t.check_equal(columns);
}

template <typename T>
void check_random(int64_t rows, int64_t size, int64_t k, bool ties) {
  DeviceTest t;
  const Array x = t.random<T>({rows, size}, ties ? 4 : 100);
  for (int64_t i = 0; ties && i < x->size(); ++i) x->set(i, std::round(x->host(i)));
  check(t, x, rows, k);
}

template <typename T>
void check_all() {
  check_random<T>(1, 1, 1, false);
  check_random<T>(2, 1000, 1000, true);
  check_random<T>(3, 31, 5, true);
  check_random<T>(1, 33, 33, false);
  check_random<T>(2, 2500, 64, true);
  check_random<T>(1, 4099, 300, false);
  check_random<T>(1, 4099, 1, true);
}

TEST_CASE_TEMPLATE("topk finds the CPU's columns in every dtype", T, BALORA_FLOAT_TYPES) {
  check_all<T>();
}

TEST_CASE("topk of a vocabulary, and with K in the hundreds") {
  check_random<bf16>(2, 50257, 64, false);
  check_random<float>(1, 49152, 50, false);
  check_random<bf16>(1, 49152, 600, false);
}

TEST_CASE("topk with more than the first bound serves") {
  check_random<float>(2, 3000, 1500, false);
  check_random<bf16>(1, 3001, 1100, true);
  check_random<double>(1, 2500, 2500, true);    // the list in global memory
  check_random<float>(1, 10'000, 7000, false);  // likewise
}

TEST_CASE("topk of rows on which the first bound lets too much through") {
  DeviceTest t;
  const int64_t size = 40'000, part = 1024 * 4;  // columns one part apart share a thread's maximum
  const Array x = t.random<float>({1, size});
  for (int64_t i = 0; i < size; ++i) {
    if (i % part < 400) x->set(i, 10 + static_cast<double>(i % 977) / 1000);
  }
  check(t, x, 1, 101);
  for (int64_t i = 0; i < size; ++i) x->set(i, 1);
  check(t, x, 1, 200);
  for (int64_t i = 0; i < size; ++i) x->set(i, static_cast<double>(i));
  check(t, x, 1, 200);
}

TEST_CASE("topk orders NaN, infinities and zeros as the CPU does") {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
  const std::vector<double> row = {0., -0., -inf, nan, 1, inf, -nan, -1, inf, 0., -0., -inf};
  for (const int64_t k : {1, 4, 12}) {
    DeviceTest t;
    for_each_type<BALORA_FLOAT_TYPES>(
        [&]<typename T>() { check(t, t.values<T>({1, 12}, row), 1, k); });
  }
  DeviceTest t;
  const Array hollow = t.values<float>({1, 2000}, std::vector<double>(2000, -inf));
  hollow->set(77, 3);
  check(t, hollow, 1, 70);
}

}  // namespace
