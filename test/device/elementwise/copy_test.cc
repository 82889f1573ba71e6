// copy on the device gives the CPU's bits: every pair of types, permuted, broadcast, narrow and
// misaligned views, sizes around the tiles of a transposition.
#include <limits>

#include "support/device_test.h"
#include "support/strided_views.h"

namespace {

using namespace balora;
using namespace balora::test;

template <typename S, typename D>
void check_cast() {
  constexpr double kScale = std::is_same_v<S, uint8_t> ? 0 : 300;
  for (const int64_t n : {int64_t{0}, int64_t{1}, int64_t{31}, int64_t{1500}}) {
    DeviceTest t;
    const Array x = t.random<S>({n}, kScale), y = t.empty<D>({n});
    if (std::is_same_v<S, uint8_t>) {
      for (int64_t i = 0; i < n; ++i) x->set(i, static_cast<double>(i % 256));
    }
    t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      return call(k.copy, ctx, {.source = view(x), .destination = view(y)});
    });
    t.check_equal(y);
  }
  DeviceTest t;
  const Array x = t.random<S>({9, 5, 21}, kScale == 0 ? 1 : kScale), y = t.empty<D>({21, 9, 5});
  if (std::is_same_v<S, uint8_t>) {
    for (int64_t i = 0; i < x->size(); ++i) x->set(i, static_cast<double>(i % 256));
  }
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    const View turned = permuted(*view(x), {2, 0, 1});
    return call(k.copy, ctx, {.source = &turned, .destination = view(y)});
  });
  t.check_equal(y);
}

TEST_CASE_TEMPLATE("copy converts between all types", S, BALORA_FLOAT_TYPES, int32_t, int64_t,
                   uint8_t) {
  for_each_type<BALORA_FLOAT_TYPES, int32_t, int64_t>([]<typename D>() { check_cast<S, D>(); });
  if (!std::is_same_v<S, int32_t> && !std::is_same_v<S, int64_t>) check_cast<S, uint8_t>();
}

TEST_CASE("a float becomes an integer by truncation that saturates; NaN becomes 0") {
  const std::vector<double> values{1.9,
                                   -1.9,
                                   1e30,
                                   -1e30,
                                   std::numeric_limits<double>::quiet_NaN(),
                                   255.5,
                                   2147483647.0,
                                   9.3e18,
                                   std::numeric_limits<double>::infinity()};
  DeviceTest t;
  const int64_t n = static_cast<int64_t>(values.size());
  const Array x = t.values<double>({n}, values), a = t.empty<int32_t>({n}),
              b = t.empty<int64_t>({n}), c = t.empty<uint8_t>({n});
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.copy, ctx, {.source = view(x), .destination = view(a)}) |
           call(k.copy, ctx, {.source = view(x), .destination = view(b)}) |
           call(k.copy, ctx, {.source = view(x), .destination = view(c)});
  });
  t.check_equal(a);
  t.check_equal(b);
  t.check_equal(c);
}

TEST_CASE("large integers round once on the way to a float") {
  DeviceTest t;
  const Array x = t.values<int64_t>({3}, {16777217.0, 9007199254740992.0, -4611686018964258816.0});
  const Array y = t.empty<float>({3}), z = t.empty<bf16>({3});
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.copy, ctx, {.source = view(x), .destination = view(y)}) |
           call(k.copy, ctx, {.source = view(x), .destination = view(z)});
  });
  t.check_equal(y);
  t.check_equal(z);
}

TEST_CASE_TEMPLATE("copy walks permuted, broadcast and narrow views", T, float, bf16, double,
                   uint8_t) {
  const auto fresh = [](DeviceTest& t, std::vector<int64_t> shape) {
    const Array x = t.empty<T>(std::move(shape));
    for (int64_t i = 0; i < x->size(); ++i) x->set(i, static_cast<double>(i % 251));
    return x;
  };
  for (const auto& order : std::vector<std::vector<int32_t>>{
           {0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}}) {
    DeviceTest t;
    const std::vector<int64_t> shape{3, 65, 70};
    const Array x = fresh(t, shape);
    const auto at = [&](size_t i) { return shape[static_cast<size_t>(order[i])]; };
    const Array y = t.empty<T>({at(0), at(1), at(2)});
    t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      const View source = permuted(*view(x), order);
      return call(k.copy, ctx, {.source = &source, .destination = view(y)});
    });
    t.check_equal(y);
  }
  for (const auto& [first, size, step] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
           {0, 32, 1}, {16, 32, 1}, {8, 24, 1}, {4, 12, 1}, {3, 31, 1}, {1, 16, 3}}) {
    DeviceTest t;  // both sides narrow
    const Array x = fresh(t, {7, 64}), y = fresh(t, {7, 96});
    t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      const View source = narrow(*view(x), 1, first, size, step);
      const View destination = narrow(*view(y), 1, first, size);
      return call(k.copy, ctx, {.source = &source, .destination = &destination});
    });
    t.check_equal(y);
  }
  for (const auto& shape : std::vector<std::vector<int64_t>>{{1, 33, 1}, {1, 1, 67}, {5, 1, 1}}) {
    DeviceTest t;
    const Array x = fresh(t, shape), y = t.empty<T>({5, 33, 67});
    t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      const View source = expanded(*view(x), {5, 33, 67});
      return call(k.copy, ctx, {.source = &source, .destination = view(y)});
    });
    t.check_equal(y);
  }
}

}  // namespace
