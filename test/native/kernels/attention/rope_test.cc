// The rotation against its definition, partial rotary, strided rows, and the inverse
// that backward uses.
#include <doctest/doctest.h>

#include "support/kernel_test.h"

namespace {

using namespace balora;
using namespace balora::test;

template <typename T>
void check_rope(int64_t rows, int64_t heads, int64_t size, int64_t rotary) {
  CAPTURE(size);
  CAPTURE(rotary);
  std::mt19937 random(13);
  TestContext ctx;
  const int64_t half = rotary / 2, table = 40, extra = 5;
  Array<T> fused({rows, heads * size + extra}, random), y({rows, heads, size});
  Array<T> back({rows, heads, size});
  Array<Acc<T>> cosine({table, half}), sine({table, half});
  for (int64_t p = 0; p < table; ++p) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(p) * std::pow(1e4, -2.0 * static_cast<double>(i) /
                                                                      static_cast<double>(rotary));
      cosine.data()[p * half + i] = static_cast<Acc<T>>(std::cos(angle));
      sine.data()[p * half + i] = static_cast<Acc<T>>(std::sin(angle));
    }
  }
  Array<int32_t> positions({rows});
  for (int64_t n = 0; n < rows; ++n) positions.data()[n] = static_cast<int32_t>(n * 7 % table);
  View x = y.view();
  x.data = fused.data();
  x.stride[0] = heads * size + extra;
  View vy = y.view(), vb = back.view(), c = cosine.view(), s = sine.view(), p = positions.view();
  REQUIRE(rope_kernel(
              ctx, {.x = &x, .cosine = &c, .sine = &s, .positions = &p, .y = &vy, .inverse = 0}) ==
          0);
  REQUIRE(rope_kernel(
              ctx, {.x = &vy, .cosine = &c, .sine = &s, .positions = &p, .y = &vb, .inverse = 1}) ==
          0);
  std::vector<double> want, original;
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t h = 0; h < heads; ++h) {
      const auto in = [&](int64_t i) { return fused[n * x.stride[0] + h * size + i]; };
      for (int64_t i = 0; i < size; ++i) {
        original.push_back(in(i));
        if (i >= rotary) {
          want.push_back(in(i));
          continue;
        }
        const int64_t j = i % half, row = positions.data()[n] * half + j;
        const double rotated = i < half ? -in(i + half) : in(i - half);
        want.push_back(in(i)*cosine[row] + rotated * sine[row]);
      }
    }
  }
  const double tolerance = 2 * epsilon_of<T>() + (std::is_same_v<T, double> ? 1e-15 : 1e-7);
  check_close(y, want, tolerance);
  check_close(back, original, 2 * tolerance);
}

TEST_CASE_TEMPLATE("rope rotates each half pair and the inverse rotates it back", T, float, bf16,
                   f16, double) {
  check_rope<T>(33, 3, 64, 64);
  check_rope<T>(31, 1, 2, 2);
  check_rope<T>(1, 2, 33, 18);
  check_rope<T>(17, 9, 80, 32);
}

TEST_CASE("rope refuses positions outside its tables") {
  TestContext ctx;
  std::mt19937 random(1);
  Array<float> x({2, 1, 4}, random), y({2, 1, 4}), cosine({8, 2}, random), sine({8, 2}, random);
  Array<int32_t> positions({2}, std::vector<double>{0, 8});
  View vx = x.view(), vy = y.view(), c = cosine.view(), s = sine.view(), p = positions.view();
  CHECK_THROWS_WITH_AS(
      rope_kernel(ctx,
                  {.x = &vx, .cosine = &c, .sine = &s, .positions = &p, .y = &vy, .inverse = 0}),
      "position 8 of row 1 is outside the tables, which have 8 rows", ArgumentError);
}

}  // namespace
