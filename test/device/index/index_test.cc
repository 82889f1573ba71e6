// Reads and writes through an index, bit for bit as on the CPU: every dtype, both index types, rows
// that move in units of 16 bytes down to one, indices that repeat often or never, and faults.
#include <array>

#include "support/device_test.h"

namespace {

using namespace balora;
using namespace balora::test;

template <typename I>
Array indices(DeviceTest& t, std::vector<int64_t> shape, int64_t limit, bool crowded = false) {
  const Array ids = t.empty<I>(std::move(shape));
  for (int64_t i = 0; i < ids->size(); ++i) {
    const auto any = static_cast<int64_t>(t.generator()() % static_cast<uint32_t>(limit));
    ids->set(i, static_cast<double>(crowded && i % 3 != 0 ? limit / 2 : any));
  }
  return ids;
}

template <typename T, typename I>
void check_select(int64_t v, int64_t n, int64_t c) {
  CAPTURE(v);
  CAPTURE(n);
  CAPTURE(c);
  DeviceTest t;
  const Array table = t.random<T>({v, c}, 100), ids = indices<I>(t, {n}, v);
  const Array y = t.empty<T>({n, c});
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.select_rows, ctx, {.table = view(table), .ids = view(ids), .y = view(y)});
  });
  t.check_equal(y);
}

TEST_CASE("select_rows copies rows of every dtype") {
  for (const auto& [v, n, c] : std::vector<std::array<int64_t, 3>>{
           {1, 1, 1}, {7, 33, 3}, {50, 31, 8}, {11, 5, 576}, {9, 4, 1027}, {5, 0, 4}}) {
    check_select<float, int32_t>(v, n, c);
    check_select<bf16, int64_t>(v, n, c);
    check_select<f16, int32_t>(v, n, c);
    check_select<double, int64_t>(v, n, c);
    check_select<int32_t, int32_t>(v, n, c);
    check_select<int64_t, int32_t>(v, n, c);
    check_select<uint8_t, int64_t>(v, n, c);
  }
}

template <typename S, typename D, typename I>
void check_select_backward(int64_t v, int64_t n, int64_t c, bool crowded) {
  CAPTURE(v);
  CAPTURE(n);
  CAPTURE(c);
  DeviceTest t;
  const Array dy = t.random<S>({n, c}), ids = indices<I>(t, {n}, v, crowded);
  const Array dx = t.empty<D>({v, c});
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.select_rows_backward, ctx, {.dy = view(dy), .ids = view(ids), .dx = view(dx)});
  });
  t.check_equal(dx);
}

TEST_CASE("select_rows_backward adds in the order of the ids, as on the CPU") {
  for (const bool crowded : {false, true}) {
    for (const auto& [v, n, c] : std::vector<std::array<int64_t, 3>>{
             {1, 1, 1}, {33, 700, 5}, {2000, 300, 8}, {3, 31, 264}, {5, 40, 270}, {40, 0, 3}}) {
      check_select_backward<float, float, int32_t>(v, n, c, crowded);
      check_select_backward<bf16, float, int64_t>(v, n, c, crowded);
      check_select_backward<bf16, bf16, int32_t>(v, n, c, crowded);
      check_select_backward<f16, float, int32_t>(v, n, c, crowded);
      check_select_backward<f16, f16, int64_t>(v, n, c, crowded);
      check_select_backward<double, double, int32_t>(v, n, c, crowded);
    }
  }
  check_select_backward<float, float, int32_t>(60'000, 40, 2, false);  // spans of more than 32 rows
}

struct Middle {
  int64_t a, r, k, c;
};
const std::vector<Middle> kMiddles = {{1, 1, 1, 1},     {3, 5, 7, 4},    {2, 31, 3, 33},
                                      {1, 900, 600, 1}, {2, 40, 100, 3}, {5, 4, 0, 2}};

template <typename T, typename I>
void check_gather(const Middle& m) {
  DeviceTest t;
  const Array x = t.random<T>({m.a, m.r, m.c}, 100), y = t.empty<T>({m.a, m.k, m.c});
  const Array index = indices<I>(t, {m.a, m.k, m.c}, m.r);
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.gather, ctx, {.x = view(x), .index = view(index), .y = view(y)});
  });
  t.check_equal(y);
}

TEST_CASE("gather reads every dtype along the middle") {
  for (const Middle& m : kMiddles) {
    check_gather<float, int32_t>(m);
    check_gather<bf16, int64_t>(m);
    check_gather<double, int32_t>(m);
    check_gather<int64_t, int64_t>(m);
    check_gather<int32_t, int64_t>(m);
    check_gather<uint8_t, int32_t>(m);
  }
}

template <typename T, typename I>
void check_scatter(const Middle& m, bool with_base, bool crowded) {
  CAPTURE(m.r);
  CAPTURE(m.k);
  DeviceTest t;
  const Array base = with_base ? t.random<T>({m.a, m.r, m.c}) : nullptr;
  const Array index = indices<I>(t, {m.a, m.k, m.c}, m.r, crowded);
  const Array source = t.random<T>({m.a, m.k, m.c}), y = t.empty<T>({m.a, m.r, m.c});
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.scatter_add, ctx,
                {.base = view(base), .index = view(index), .source = view(source), .y = view(y)});
  });
  t.check_equal(y);
}

TEST_CASE("scatter_add adds in the order of k, as on the CPU") {
  for (const Middle& m : kMiddles) {
    for (const bool crowded : {false, true}) {
      check_scatter<float, int32_t>(m, crowded, crowded);
      check_scatter<float, int64_t>(m, !crowded, crowded);
      check_scatter<bf16, int64_t>(m, true, crowded);
      check_scatter<f16, int32_t>(m, false, crowded);
      check_scatter<double, int32_t>(m, true, crowded);
    }
  }
}

// The row returns; the message comes when the device is waited for.
void check_fault(DeviceTest& t, const std::string& row, const DeviceTest::Row& call) {
  REQUIRE(t.on_device(call) == 0);
  CHECK(t.synchronize() != 0);
  CHECK(t.error().find(row + ": index ") != std::string::npos);
  CHECK(t.error().find(" at position 1 is outside [0,5)") != std::string::npos);
  CHECK(t.synchronize() == 0);
}

TEST_CASE("an index out of range is reported, and nothing is written through it") {
  for (const double bad : {5.0, -1.0}) {
    DeviceTest t;
    const Array table = t.random<float>({5, 6}), y = t.empty<float>({3, 6});
    const Array ids = t.values<int64_t>({3}, {0, bad, 4});
    check_fault(t, "select_rows", [&](const KernelTable& k, Context* ctx, const auto& view) {
      return call(k.select_rows, ctx, {.table = view(table), .ids = view(ids), .y = view(y)});
    });
    const Array dx = t.empty<float>({5, 6}), dy = t.random<float>({3, 6});
    check_fault(t, "select_rows_backward",
                [&](const KernelTable& k, Context* ctx, const auto& view) {
                  return call(k.select_rows_backward, ctx,
                              {.dy = view(dy), .ids = view(ids), .dx = view(dx)});
                });
    const Array x = t.random<float>({1, 5, 1}), index = t.values<int32_t>({1, 3, 1}, {0, bad, 4});
    const Array z = t.empty<float>({1, 3, 1}), sums = t.empty<float>({1, 5, 1});
    check_fault(t, "gather", [&](const KernelTable& k, Context* ctx, const auto& view) {
      return call(k.gather, ctx, {.x = view(x), .index = view(index), .y = view(z)});
    });
    const Array source = t.random<float>({1, 3, 1});
    check_fault(t, "scatter_add", [&](const KernelTable& k, Context* ctx, const auto& view) {
      return call(k.scatter_add, ctx,
                  {.base = view(x), .index = view(index), .source = view(source), .y = view(sums)});
    });
  }
}

}  // namespace
