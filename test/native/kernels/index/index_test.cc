// Row selection, gather and scatter-add against plain loops; repeated and out-of-range indices.
#include <array>

#include "support/views.h"
#include "tensor/errors.h"

namespace {

using namespace balora;
using namespace balora::test;

std::vector<double> some_ids(int64_t n, int64_t limit, std::mt19937& random) {
  std::vector<double> ids;
  for (int64_t i = 0; i < n; ++i)
    ids.push_back(static_cast<double>(random() % static_cast<uint32_t>(limit)));
  return ids;
}

template <typename T, typename I>
void check_rows(int64_t vocabulary, int64_t channels, int64_t n) {
  std::mt19937 random(5);
  TestContext ctx(3);
  Array<T> table({vocabulary, channels}, random), dy({n, channels}, random);
  Array<I> ids({n}, some_ids(n, vocabulary, random));
  Array<T> y({n, channels}), narrow({vocabulary, channels});
  Array<Acc<T>> wide({vocabulary, channels});
  const View vt = table.view(), vi = ids.view(), vy = y.view(), vdy = dy.view(), vn = narrow.view(),
             vw = wide.view();
  REQUIRE(select_rows_kernel(ctx, {.table = &vt, .ids = &vi, .y = &vy}) == 0);
  REQUIRE(select_rows_backward_kernel(ctx, {.dy = &vdy, .ids = &vi, .dx = &vn}) == 0);
  REQUIRE(select_rows_backward_kernel(ctx, {.dy = &vdy, .ids = &vi, .dx = &vw}) == 0);
  std::vector<double> picked, gradient(static_cast<size_t>(vocabulary * channels), 0.0);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t c = 0; c < channels; ++c) {
      const auto row = static_cast<int64_t>(ids[i]);
      picked.push_back(table[row * channels + c]);
      gradient[static_cast<size_t>(row * channels + c)] += dy[i * channels + c];
    }
  }
  check_close(y, picked, 0);
  check_close(narrow, gradient, 2 * epsilon_of<T>());
  check_close(wide, gradient, 1e-6);
}

TEST_CASE_TEMPLATE("rows of a table and their gradient", T, float, bf16, f16, double) {
  check_rows<T, int32_t>(7, 33, 31);
  check_rows<T, int64_t>(123, 257, 33);
  check_rows<T, int32_t>(1, 1, 1);
  check_rows<T, int32_t>(5, 4, 0);
}

TEST_CASE("an index out of range fails with its value and position") {
  TestContext ctx;
  Array<float> table({4, 3}), y({2, 3});
  for (const double bad : {4.0, -1.0}) {
    Array<int32_t> ids({2}, {1, bad});
    const View vt = table.view(), vi = ids.view(), vy = y.view();
    CHECK_THROWS_AS(select_rows_kernel(ctx, {.table = &vt, .ids = &vi, .y = &vy}), ArgumentError);
    CHECK_THROWS_AS(select_rows_backward_kernel(ctx, {.dy = &vy, .ids = &vi, .dx = &vt}),
                    ArgumentError);
  }
}

TEST_CASE_TEMPLATE("gather and scatter-add along the middle", T, float, bf16, double) {
  std::mt19937 random(6);
  const std::vector<std::array<int64_t, 4>> extents{{3, 31, 5, 33}, {33, 123, 2, 1}, {1, 2, 7, 1}};
  for (const auto& [A, R, K, C] : extents) {
    Array<T> x({A, R, C}, random), source({A, K, C}, random);
    Array<int32_t> index({A, K, C}, some_ids(A * K * C, R, random));
    Array<T> y({A, K, C}), sum({A, R, C}), again({A, R, C}), from_zero({A, R, C});
    const View vx = x.view(), vi = index.view(), vs = source.view(), vy = y.view();
    const View v1 = sum.view(), v2 = again.view(), v0 = from_zero.view();
    TestContext one(1), three(3);
    REQUIRE(gather_kernel(three, {.x = &vx, .index = &vi, .y = &vy}) == 0);
    REQUIRE(scatter_add_kernel(one, {.base = &vx, .index = &vi, .source = &vs, .y = &v1}) == 0);
    REQUIRE(scatter_add_kernel(three, {.base = &vx, .index = &vi, .source = &vs, .y = &v2}) == 0);
    REQUIRE(scatter_add_kernel(three, {.index = &vi, .source = &vs, .y = &v0}) == 0);
    std::vector<double> picked, total = x.values(), only(static_cast<size_t>(A * R * C), 0.0);
    for (int64_t i = 0; i < A * K * C; ++i) {
      const int64_t a = i / (K * C), c = i % C;
      const int64_t at = (a * R + static_cast<int64_t>(index[i])) * C + c;
      picked.push_back(x[at]);
      total[static_cast<size_t>(at)] += source[i];
      only[static_cast<size_t>(at)] += source[i];
    }
    check_close(y, picked, 0);
    check_close(sum, total, 2 * epsilon_of<T>());
    check_close(again, sum.values(), 0);
    check_close(from_zero, only, 2 * epsilon_of<T>());
  }
}

}  // namespace
