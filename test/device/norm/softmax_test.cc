// softmax and logSoftmax on the device against f64: short rows (a warp each), long ones (a block),
// rows that do not fit into registers, rows that do not begin on 16 bytes, a vocabulary's
// log-sum-exp to the last bit or so, and what infinities and NaN become.
#include <limits>

#include "support/device_test.h"

namespace {

using namespace balora;
using namespace balora::test;

struct Truth {
  std::vector<double> y, lse, dx;
};
Truth truth_of(const Operand& x, const Operand& dy, int64_t rows, int64_t size, bool logarithm) {
  Truth t;
  for (int64_t n = 0; n < rows; ++n) {
    double top = -INFINITY, total = 0, dot = 0;
    for (int64_t c = 0; c < size; ++c) top = std::max(top, x.host(n * size + c));
    for (int64_t c = 0; c < size; ++c) total += std::exp(x.host(n * size + c) - top);
    const double lse = top + std::log(total);
    t.lse.push_back(lse);
    for (int64_t c = 0; c < size; ++c) {
      const double below = x.host(n * size + c) - lse, g = dy.host(n * size + c);
      t.y.push_back(logarithm ? below : std::exp(below));
      dot += logarithm ? g : g * std::exp(below);
    }
    for (int64_t c = 0; c < size; ++c) {
      const double p = std::exp(x.host(n * size + c) - lse), g = dy.host(n * size + c);
      t.dx.push_back(logarithm ? g - p * dot : p * (g - dot));
    }
  }
  return t;
}

template <typename T>
void check(int64_t rows, int64_t size, double scale = 4) {
  for (const bool logarithm : {false, true}) {
    CAPTURE(rows);
    CAPTURE(size);
    CAPTURE(logarithm);
    DeviceTest t;
    const Array x = t.random<T>({rows, size}, scale), dy = t.random<T>({rows, size});
    const Array y = t.empty<T>({rows, size}), dx = t.empty<T>({rows, size});
    const Array lse = t.empty<Acc<T>>({rows});
    t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      return call(k.softmax_forward, ctx,
                  {.x = view(x), .y = view(y), .lse = view(lse), .logarithm = logarithm});
    });
    const Truth truth = truth_of(*x, *dy, rows, size, logarithm);
    // On the CPU f64 has the truth's very bits; an exponential shows a last bit of the log-sum-exp
    // (up to 30 here) that another order of addition turns.
    const double each = (std::is_same_v<T, double> ? 64 : 1) * epsilon_of<T>();
    const double wide = std::max(each, 4 * epsilon_of<Acc<T>>());
    t.check_truth(y, truth.y, each);
    t.check_truth(lse, truth.lse, 2 * epsilon_of<Acc<T>>(), 0);
    t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      return call(
          k.softmax_backward, ctx,
          {.dy = view(dy), .x = view(x), .lse = view(lse), .dx = view(dx), .logarithm = logarithm});
    });
    t.check_truth(dx, truth.dx, each + wide);
  }
}

template <typename T>
void check_all() {
  check<T>(1, 1);
  check<T>(3, 31);
  check<T>(5, 33);
  check<T>(4, 123, 30);
  check<T>(7, 64);
  check<T>(2, 1025);
  check<T>(3, 2056);
}

TEST_CASE_TEMPLATE("softmax and logSoftmax, forward and backward, match f64", T,
                   BALORA_FLOAT_TYPES) {
  check_all<T>();
}

TEST_CASE("softmax of rows that do not fit into registers") {
  check<float>(2, 8192 + 77);
  check<bf16>(3, 16384 + 211);
  check<float>(1, 50257, 8);
}

TEST_CASE("softmax treats infinities and NaN as the CPU does") {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
  for (const bool logarithm : {false, true}) {
    DeviceTest t;
    const Array x =
        t.values<float>({6, 4}, {-inf, 1, 2,    -inf, -inf, -inf, -inf, -inf, inf, 1,   2,    3,
                                 nan,  1, -inf, 2,    -inf, -inf, nan,  -inf, nan, inf, -inf, 0});
    const Array y = t.empty<float>({6, 4}), lse = t.empty<float>({6});
    t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      return call(k.softmax_forward, ctx,
                  {.x = view(x), .y = view(y), .lse = view(lse), .logarithm = logarithm});
    });
    t.check_close(y, 1e-6);
    t.check_close(lse, 1e-6);
  }
}

}  // namespace
