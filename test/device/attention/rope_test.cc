// The rotation on the device against the CPU: whole and partial rotary, strided rows, odd sizes,
// the way back, and a position outside the tables.
#include "support/device_test.h"
#include "support/strided_views.h"

namespace {

using namespace balora;
using namespace balora::test;

struct Sizes {
  int64_t rows, heads, size, rotary, extra;  // extra: what a row holds beside the heads
};

template <typename T>
void check_rope(const Sizes& s) {
  CAPTURE(s.size);
  CAPTURE(s.rotary);
  constexpr int64_t kTable = 40;
  DeviceTest t;
  const int64_t half = s.rotary / 2, width = s.heads * s.size + s.extra;
  const Array fused = t.random<T>({s.rows, width}), y = t.empty<T>({s.rows, s.heads, s.size}),
              back = t.empty<T>({s.rows, s.heads, s.size}),
              cosine = t.random<Acc<T>>({kTable, half}), sine = t.random<Acc<T>>({kTable, half}),
              positions = t.empty<int32_t>({s.rows});
  for (int64_t n = 0; n < s.rows; ++n) positions->set(n, static_cast<double>(n * 7 % kTable));
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    View x = *view(y);
    x.data = view(fused)->data;
    x.stride[0] = width;
    return call(k.rope, ctx,
                {.x = &x,
                 .cosine = view(cosine),
                 .sine = view(sine),
                 .positions = view(positions),
                 .y = view(y),
                 .inverse = 0}) |
           call(k.rope, ctx,
                {.x = view(y),
                 .cosine = view(cosine),
                 .sine = view(sine),
                 .positions = view(positions),
                 .y = view(back),
                 .inverse = 1});
  });
  const double tolerance = 2 * epsilon_of<T>() + (std::is_same_v<T, double> ? 1e-15 : 3e-7);
  t.check_close(y, tolerance);
  t.check_close(back, 4 * tolerance);
}

TEST_CASE_TEMPLATE("rope agrees with the CPU", T, BALORA_FLOAT_TYPES) {
  check_rope<T>({0, 2, 8, 8, 0});
  check_rope<T>({1, 1, 2, 2, 0});
  check_rope<T>({7, 3, 16, 16, 5});
  check_rope<T>({33, 2, 64, 64, 128});
  check_rope<T>({5, 4, 64, 32, 0});
  check_rope<T>({5, 3, 31, 10, 3});
  check_rope<T>({3, 2, 80, 20, 16});
  check_rope<T>({3, 2, 33, 0, 0});
  check_rope<T>({2, 9, 128, 128, 0});
}

TEST_CASE("a position outside the tables is reported and its row not rotated") {
  DeviceTest t;
  const Array x = t.random<float>({3, 2, 8}), y = t.empty<float>({3, 2, 8}),
              cosine = t.random<float>({40, 4}), sine = t.random<float>({40, 4}),
              positions = t.values<int32_t>({3}, {1, 40, 2});
  const auto row = [&](const KernelTable& k, Context* ctx, const DeviceTest::ViewOf& view) {
    return call(k.rope, ctx,
                {.x = view(x),
                 .cosine = view(cosine),
                 .sine = view(sine),
                 .positions = view(positions),
                 .y = view(y),
                 .inverse = 0});
  };
  REQUIRE(t.on_device(row) == 0);
  CHECK(t.synchronize() != 0);
  CHECK(t.error() == "rope: position 40 of row 1 is outside the tables, which have 40 rows");
  CHECK(t.synchronize() == 0);
  positions->set(1, -1);
  REQUIRE(t.on_device(row) == 0);
  CHECK(t.synchronize() != 0);
  CHECK(t.error() == "rope: position -1 of row 1 is outside the tables, which have 40 rows");
}

}  // namespace
