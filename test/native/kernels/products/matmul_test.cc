// The batched product over strided and broadcasting views, against plain loops in f64.
#include <doctest/doctest.h>

#include <cmath>

#include "kernels/cpu/runtime/cpu_kernels.h"
#include "support/kernel_test.h"

namespace balora::test {
namespace {

// A view over part of an array, with any strides.
template <typename T>
View strided(Array<T>& array, std::vector<int64_t> shape, std::vector<int64_t> stride) {
  View view{};
  view.data = array.data();
  view.dtype = dtype_of<T>();
  view.ndim = static_cast<int32_t>(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) view.shape[i] = shape[i], view.stride[i] = stride[i];
  return view;
}

template <typename T>
double element(const View& v, const std::vector<int64_t>& batch, int64_t i, int64_t j) {
  int64_t at = i * v.stride[v.ndim - 2] + j * v.stride[v.ndim - 1];
  const auto skip = static_cast<int32_t>(batch.size()) - (v.ndim - 2);
  for (int32_t d = 0; d < v.ndim - 2; ++d) {
    if (v.shape[d] != 1) at += batch[static_cast<size_t>(d + skip)] * v.stride[d];
  }
  return to_double(static_cast<const T*>(v.data)[at]);
}

template <typename T>
void check(const View& a, const View& b, std::vector<int64_t> batch_shape) {
  TestContext ctx;
  const int64_t m = a.shape[a.ndim - 2], k = a.shape[a.ndim - 1], n = b.shape[b.ndim - 1];
  std::vector<int64_t> shape = batch_shape;
  shape.insert(shape.end(), {m, n});
  Array<T> c(shape);
  const View vc = c.view();
  REQUIRE(matmul_kernel(ctx, {.a = &a, .b = &b, .c = &vc, .alpha = 0.5}) == 0);
  for (int64_t at = 0; at < c.size(); ++at) {
    std::vector<int64_t> batch(batch_shape.size());
    int64_t rest = at / (m * n);
    for (size_t d = batch.size(); d-- > 0;) {
      batch[d] = rest % batch_shape[d];
      rest /= batch_shape[d];
    }
    double sum = 0, magnitude = 0;
    for (int64_t q = 0; q < k; ++q) {
      const double product = element<T>(a, batch, at / n % m, q) * element<T>(b, batch, q, at % n);
      sum += product, magnitude += std::abs(product);
    }
    const double sums = (std::is_same_v<T, double> ? 0x1p-50 : 0x1p-21) * magnitude;
    const double allowed = epsilon_of<T>() * std::abs(0.5 * sum) + sums + 0x1p-24;
    const bool close = std::abs(c[at] - 0.5 * sum) <= allowed;
    CHECK_MESSAGE(close, "element ", at, ": got ", c[at], ", expected ", 0.5 * sum);
  }
}

template <typename T>
void check_layouts() {
  std::mt19937 random(3);
  Array<T> a({4000}, random), b({4000}, random);
  // Plain, transposed, both, and neither stride 1.
  check<T>(strided(a, {7, 5}, {5, 1}), strided(b, {5, 9}, {9, 1}), {});
  check<T>(strided(a, {7, 5}, {1, 7}), strided(b, {5, 9}, {1, 5}), {});
  check<T>(strided(a, {7, 5}, {20, 2}), strided(b, {5, 9}, {30, 3}), {});
  check<T>(strided(a, {7, 5}, {0, 1}), strided(b, {5, 9}, {9, 0}), {});
  check<T>(strided(a, {1, 33}, {33, 1}), strided(b, {33, 1}, {1, 1}), {});
  // A batch whose right side is shared becomes rows.
  check<T>(strided(a, {2, 3, 7, 5}, {105, 35, 5, 1}), strided(b, {5, 9}, {9, 1}), {2, 3});
  check<T>(strided(a, {7, 5}, {5, 1}), strided(b, {2, 3, 5, 9}, {135, 45, 9, 1}), {2, 3});
  // Heads beside rows: (B,T,H,D) read as (B,H,T,D).
  check<T>(strided(a, {2, 4, 6, 8}, {192, 8, 32, 1}), strided(b, {2, 4, 8, 6}, {192, 8, 1, 32}),
           {2, 4});
  // Both sides broadcast, each over its own dimension.
  check<T>(strided(a, {2, 1, 7, 5}, {35, 35, 5, 1}), strided(b, {1, 3, 5, 9}, {135, 45, 9, 1}),
           {2, 3});
  check<T>(strided(a, {2, 3, 4, 5}, {20, 0, 1, 4}), strided(b, {2, 3, 5, 4}, {0, 40, 8, 2}),
           {2, 3});
  check<T>(strided(a, {2, 3, 0}, {0, 1, 1}), strided(b, {2, 0, 4}, {0, 4, 1}), {2});
}

}  // namespace

TEST_CASE("matmul: f32") {
  check_layouts<float>();
}
TEST_CASE("matmul: bf16") {
  check_layouts<bf16>();
}
TEST_CASE("matmul: f16") {
  check_layouts<f16>();
}
TEST_CASE("matmul: f64") {
  check_layouts<double>();
}

}  // namespace balora::test
