// row_norm on the device against the CPU and f64: no part, one, several, ranks and sizes that fill
// no tile.
#include "kernels/operands/linear.h"
#include "support/device_test.h"

namespace {

using namespace balora;
using namespace balora::test;

template <typename T>
void check_row_norm(int64_t rows, int64_t columns, const std::vector<int64_t>& ranks) {
  CAPTURE(rows);
  CAPTURE(columns);
  DeviceTest t;
  const Array weight = t.random<T>({rows, columns}), norm = t.empty<Acc<T>>({rows});
  std::vector<Array> a, b;
  std::vector<double> sums(static_cast<size_t>(rows * columns));
  for (int64_t i = 0; i < rows * columns; ++i) sums[static_cast<size_t>(i)] = weight->host(i);
  for (const int64_t rank : ranks) {
    a.push_back(t.random<Acc<T>>({rank, columns}));
    b.push_back(t.random<Acc<T>>({rows, rank}));
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
      parts.push_back({.a = view(a[p]), .b = view(b[p]), .scale = 0.7});
    }
    return call(k.row_norm, ctx,
                {.weight = {.dense = view(weight)},
                 .parts = parts.data(),
                 .part_count = static_cast<int32_t>(parts.size()),
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
  t.check_truth(norm, truth, 4 * epsilon_of<Acc<T>>(), 1);
}

TEST_CASE_TEMPLATE("row_norm agrees with the CPU", T, BALORA_FLOAT_TYPES) {
  check_row_norm<T>(1, 1, {});
  check_row_norm<T>(3, 0, {2});
  check_row_norm<T>(33, 31, {1});
  check_row_norm<T>(70, 150, {17, 3});
  check_row_norm<T>(130, 260, {8});
}

TEST_CASE("row_norm takes more parts than a launch") {
  check_row_norm<bf16>(33, 31, std::vector<int64_t>(40, 2));
  check_row_norm<double>(3, 70, std::vector<int64_t>(33, 1));
}

TEST_CASE("row_norm subtracts the start of a part") {
  DeviceTest t;
  const Array weight = t.random<bf16>({33, 40}), norm = t.empty<float>({33});
  const Array a = t.random<float>({5, 40}), b = t.random<float>({33, 5});
  const Array a0 = t.random<float>({5, 40}), b0 = t.random<float>({33, 5});
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    const LowRankOperands part = {
        .a = view(a), .b = view(b), .start_a = view(a0), .start_b = view(b0), .scale = 0.5};
    return call(
        k.row_norm, ctx,
        {.weight = {.dense = view(weight)}, .parts = &part, .part_count = 1, .norm = view(norm)});
  });
  std::vector<double> truth;
  for (int64_t o = 0; o < 33; ++o) {
    double squares = 0;
    for (int64_t i = 0; i < 40; ++i) {
      double value = weight->host(o * 40 + i);
      for (int64_t r = 0; r < 5; ++r) {
        value += 0.5 * b->host(o * 5 + r) * a->host(r * 40 + i);
        value -= 0.5 * b0->host(o * 5 + r) * a0->host(r * 40 + i);
      }
      squares += value * value;
    }
    truth.push_back(std::sqrt(squares));
  }
  t.check_truth(norm, truth, 4 * epsilon_of<float>(), 1);
}

}  // namespace
