// row_norm on the device against the CPU and f64: no part, one, several, ranks and sizes that fill
// no tile.
#include "kernels/operands/linear.h"
#include "support/device_test.h"

namespace {

using namespace balora;
using namespace balora::test;

template <typename T>
using AccOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
void check_row_norm(int64_t rows, int64_t columns, const std::vector<int64_t>& ranks) {
  CAPTURE(rows);
  CAPTURE(columns);
  DeviceTest t;
  const Array weight = t.random<T>({rows, columns}), norm = t.empty<AccOf<T>>({rows});
  std::vector<Array> a, b;
  std::vector<double> sums(static_cast<size_t>(rows * columns));
  for (int64_t i = 0; i < rows * columns; ++i) sums[static_cast<size_t>(i)] = weight->host(i);
  for (const int64_t rank : ranks) {
    a.push_back(t.random<AccOf<T>>({rank, columns}));
    b.push_back(t.random<AccOf<T>>({rows, rank}));
    for (int64_t o = 0; o < rows; ++o) {
      for (int64_t i = 0; i < columns; ++i) {
        for (int64_t r = 0; r < rank; ++r) {
          sums[static_cast<size_t>(o * columns + i)] +=
              0.7 * b.back()->host(o * rank + r) * a.back()->host(r * columns + i);
        }
      }
    }
  }
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    std::vector<LowRankOperands> parts;
    for (size_t p = 0; p < a.size(); ++p) {
      parts.push_back({view(a[p]), view(b[p]), nullptr, nullptr, nullptr, 0.7, 0, 0});
    }
    return call(k.row_norm, ctx,
                {.weight = view(weight),
                 .parts = parts.data(),
                 .count = static_cast<int32_t>(parts.size()),
                 .norm = view(norm)});
  });
  std::vector<double> truth;
  for (int64_t o = 0; o < rows; ++o) {
    double squares = 0;
    for (int64_t i = 0; i < columns; ++i) {
      const double value = sums[static_cast<size_t>(o * columns + i)];
      squares += value * value;
    }
    truth.push_back(std::sqrt(squares));
  }
  t.check_truth(norm, truth, 4 * epsilon_of<AccOf<T>>(), 1);
}

TEST_CASE_TEMPLATE("row_norm agrees with the CPU", T, BALORA_FLOAT_TYPES) {
  check_row_norm<T>(1, 1, {});
  check_row_norm<T>(3, 0, {2});
  check_row_norm<T>(33, 31, {1});
  check_row_norm<T>(70, 150, {17, 3});
  check_row_norm<T>(130, 260, {8});
}

TEST_CASE("row_norm says how many parts it takes") {
  DeviceTest t;
  const Array weight = t.random<float>({2, 2}), norm = t.empty<float>({2});
  CHECK(t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
    const std::vector<LowRankOperands> parts(
        33, {view(weight), view(weight), nullptr, nullptr, nullptr, 1, 0, 0});
    return call(k.row_norm, ctx,
                {.weight = view(weight), .parts = parts.data(), .count = 33, .norm = view(norm)});
  }) != 0);
  CHECK(t.error() == "row_norm: at most 32 low-rank parts a weight, got 33");
}

}  // namespace
