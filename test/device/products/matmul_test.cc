// matmul on the device against the CPU: layouts, broadcasting, every float type, empty inner
// extents, and TF32 where that is allowed.
#include <functional>

#include "support/device_test.h"

namespace {

using namespace balora;
using namespace balora::test;

struct Layout {
  std::vector<int64_t> shape, stride;
};

View over(const View* base, const Layout& layout) {
  View view = *base;
  view.ndim = static_cast<int32_t>(layout.shape.size());
  for (size_t i = 0; i < layout.shape.size(); ++i) {
    view.shape[i] = layout.shape[i];
    view.stride[i] = layout.stride[i];
  }
  return view;
}

// f64 truth of element (i,j) of the product, with the batch index of c.
double product_at(const Operand& a, const Layout& la, const Operand& b, const Layout& lb,
                  const std::vector<int64_t>& shape, int64_t at) {
  const int64_t n = shape.back(), m = shape[shape.size() - 2], k = la.shape.back();
  int64_t offset_a = 0, offset_b = 0, rest = at / (m * n);
  const auto batch = static_cast<int64_t>(shape.size()) - 2;
  for (int64_t d = batch - 1; d >= 0; --d) {
    const int64_t index = rest % shape[static_cast<size_t>(d)];
    rest /= shape[static_cast<size_t>(d)];
    const auto add = [&](const Layout& l, int64_t& offset) {
      const int64_t own = d - (batch - (static_cast<int64_t>(l.shape.size()) - 2));
      if (own < 0 || l.shape[static_cast<size_t>(own)] == 1) return;
      offset += index * l.stride[static_cast<size_t>(own)];
    };
    add(la, offset_a);
    add(lb, offset_b);
  }
  double sum = 0;
  for (int64_t q = 0; q < k; ++q) {
    const size_t ra = la.stride.size() - 2, rb = lb.stride.size() - 2;
    sum += a.host(offset_a + at / n % m * la.stride[ra] + q * la.stride[ra + 1]) *
           b.host(offset_b + q * lb.stride[rb] + at % n * lb.stride[rb + 1]);
  }
  return sum;
}

template <typename T>
void check_matmul(const Layout& la, const Layout& lb, std::vector<int64_t> shape) {
  CAPTURE(shape);
  DeviceTest t;
  const Array a = t.random<T>({4000}), b = t.random<T>({4000}), c = t.empty<T>(shape);
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    const View va = over(view(a), la), vb = over(view(b), lb);
    return call(k.matmul, ctx, {.a = &va, .b = &vb, .c = view(c), .alpha = 0.5});
  });
  std::vector<double> truth;
  for (int64_t i = 0; i < c->size(); ++i) {
    truth.push_back(0.5 * product_at(*a, la, *b, lb, shape, i));
  }
  t.check_truth(c, truth, 2 * epsilon_of<T>() + (sizeof(T) < 8 ? 0x1p-20 : 0x1p-49));
}

template <typename T>
void check_layouts() {
  check_matmul<T>({{7, 5}, {5, 1}}, {{5, 9}, {9, 1}}, {7, 9});
  check_matmul<T>({{7, 5}, {1, 7}}, {{5, 9}, {1, 5}}, {7, 9});
  check_matmul<T>({{7, 5}, {20, 2}}, {{5, 9}, {30, 3}}, {7, 9});
  check_matmul<T>({{7, 5}, {0, 1}}, {{5, 9}, {9, 0}}, {7, 9});
  check_matmul<T>({{1, 33}, {33, 1}}, {{33, 1}, {1, 1}}, {1, 1});
  check_matmul<T>({{33, 1}, {1, 1}}, {{1, 31}, {31, 1}}, {33, 31});
  check_matmul<T>({{7, 0}, {1, 1}}, {{0, 9}, {9, 1}}, {7, 9});
  check_matmul<T>({{2, 3, 7, 5}, {105, 35, 5, 1}}, {{5, 9}, {9, 1}}, {2, 3, 7, 9});
  check_matmul<T>({{7, 5}, {5, 1}}, {{2, 3, 5, 9}, {135, 45, 9, 1}}, {2, 3, 7, 9});
  // Heads beside rows: (B,T,H,D) read as (B,H,T,D).
  check_matmul<T>({{2, 4, 6, 8}, {192, 8, 32, 1}}, {{2, 4, 8, 6}, {192, 8, 1, 32}}, {2, 4, 6, 6});
  // Both sides broadcast, each over its own dimension; packed ones too.
  check_matmul<T>({{2, 1, 7, 5}, {35, 35, 5, 1}}, {{1, 3, 5, 9}, {135, 45, 9, 1}}, {2, 3, 7, 9});
  check_matmul<T>({{2, 3, 4, 5}, {20, 0, 1, 4}}, {{2, 3, 5, 4}, {0, 40, 8, 2}}, {2, 3, 4, 4});
  check_matmul<T>({{5, 3, 4, 5}, {0, 40, 10, 2}}, {{5, 3, 5, 4}, {60, 20, 4, 1}}, {5, 3, 4, 4});
}

TEST_CASE_TEMPLATE("matmul takes every layout and type", T, BALORA_FLOAT_TYPES) {
  check_layouts<T>();
}

// |a b| with every factor's absolute value: what an error of the factors is measured by.
std::vector<double> product(const Array& a, const Array& b, int64_t m, int64_t n, int64_t k,
                            const std::function<double(double)>& of) {
  std::vector<double> out;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t q = 0; q < k; ++q) sum += of(a->host(i * k + q)) * of(b->host(q * n + j));
      out.push_back(sum);
    }
  }
  return out;
}

// Largest error of a product, in units of the sum of its terms' absolute values.
double relative_error(bool allow_tf32, int32_t dtype) {
  constexpr int64_t m = 64, n = 48, k = 128;
  DeviceTest t;
  const Array a = t.random(dtype, {m, k}), b = t.random(dtype, {k, n}), c = t.make(dtype, {m, n});
  const int32_t status = t.on_device([&](const KernelTable& kernels, Context* ctx, const auto& v) {
    ctx->allow_tf32 = allow_tf32;
    return call(kernels.matmul, ctx, {.a = v(a), .b = v(b), .c = v(c), .alpha = 1});
  });
  REQUIRE_MESSAGE(status == 0, t.error());
  const std::vector<double> truth = product(a, b, m, n, k, [](double x) { return x; }),
                            size = product(a, b, m, n, k, [](double x) { return std::abs(x); }),
                            got = c->from_device();
  double worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    worst = std::max(worst, std::abs(got[i] - truth[i]) / size[i]);
  }
  return worst;
}

TEST_CASE("f32 products round their factors to TF32 where that is allowed, and else never") {
  CHECK(relative_error(false, BALORA_F32) < 1e-6);
  const double allowed = relative_error(true, BALORA_F32);
  CHECK(allowed < 0x1p-9);
  // A library is free not to round; the emulated one rounds where it may.
  if (DeviceTest().emulated()) CHECK(allowed > 1e-5);
  CHECK(relative_error(true, BALORA_F64) < 1e-15);
}

}  // namespace
