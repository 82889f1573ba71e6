// Reductions on the device against f64: along the last dimension and along the middle, rows in one
// chunk and in several, rows that do not begin on 16 bytes, every dtype into every dtype, and the
// CPU's way with infinities, NaN and ties.
#include <limits>

#include "kernels/shared/op_codes.h"
#include "support/device_test.h"

namespace {

using namespace balora;
using namespace balora::test;

struct Extent {
  int64_t a, r, c;
};
const std::vector<Extent> kExtents = {{1, 1, 1},   {3, 31, 1},   {5, 33, 1},  {2, 1025, 1},
                                      {1, 2, 2},   {3, 123, 3},  {2, 31, 33}, {1, 700, 5},
                                      {4, 64, 64}, {1, 1100, 1}, {0, 5, 3},   {2, 7, 1}};

constexpr double kCorrection = 0.5;

// The reduction of the elements from `at`, `step` apart.
double reduced(const Operand& x, int64_t at, int64_t step, int64_t count, int32_t op) {
  double sum = 0, squares = 0, exponentials = 0, top = -INFINITY;
  for (int64_t r = 0; r < count; ++r) top = std::max(top, x.host(at + r * step));
  for (int64_t r = 0; r < count; ++r) {
    sum += x.host(at + r * step);
    exponentials += std::exp(x.host(at + r * step) - top);
  }
  const auto n = static_cast<double>(count);
  for (int64_t r = 0; r < count; ++r) squares += std::pow(x.host(at + r * step) - sum / n, 2);
  if (op == BALORA_LOGSUMEXP) return top + std::log(exponentials);
  if (op == BALORA_VARIANCE) return squares / (n - kCorrection);
  return op == BALORA_MEAN ? sum / n : sum;
}

template <typename T, typename D>
void check(const Extent& e, int32_t op) {
  CAPTURE(e.a);
  CAPTURE(e.r);
  CAPTURE(e.c);
  CAPTURE(op);
  DeviceTest t;
  const Array x = t.random<T>({e.a, e.r, e.c}, 3), y = t.empty<D>({e.a, e.c});
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.reduce, ctx,
                {.x = view(x),
                 .y = view(y),
                 .op = static_cast<balora_reduce_op>(op),
                 .correction = kCorrection});
  });
  std::vector<double> truth;
  for (int64_t a = 0; a < e.a; ++a) {
    for (int64_t c = 0; c < e.c; ++c) {
      truth.push_back(reduced(*x, a * e.r * e.c + c, e.c, e.r, op));
    }
  }
  // Both round an f64 sum once; f64 sums of f64 differ by the order of their additions.
  const bool f64 = std::is_same_v<T, double> || std::is_same_v<D, double>;
  const double added = std::is_same_v<T, double> ? 64 * epsilon_of<double>() : 1e-12;
  const bool exponentials = op == BALORA_LOGSUMEXP && !std::is_same_v<T, double>;
  t.check_truth(y, truth, exponentials ? 2e-7 + epsilon_of<D>() : f64 ? added : epsilon_of<D>(), 1);
}

template <typename T>
void check_all() {
  for (const int32_t op : {BALORA_SUM, BALORA_MEAN, BALORA_LOGSUMEXP, BALORA_VARIANCE}) {
    for (const Extent& e : kExtents) check<T, Acc<T>>(e, op);
    check<T, bf16>({3, 40, 2}, op);
    check<T, f16>({3, 40, 1}, op);
    check<T, double>({3, 41, 1}, op);
    check<T, float>({2, 41, 3}, op);
  }
}

TEST_CASE_TEMPLATE("sum, mean, logsumexp and variance match f64", T, BALORA_FLOAT_TYPES) {
  check_all<T>();
}

TEST_CASE("reductions of rows in several chunks") {
  for (const int32_t op : {BALORA_SUM, BALORA_LOGSUMEXP, BALORA_VARIANCE}) {
    check<float, float>({2, 50257, 1}, op);
    check<bf16, float>({1, 3 * (1 << 14) + 1, 1}, op);
  }
}

template <typename T>
void check_backward(const Extent& e, int32_t op) {
  CAPTURE(e.r);
  CAPTURE(op);
  DeviceTest t;
  const Array x = t.random<T>({e.a, e.r, e.c}, 3), dy = t.random<T>({e.a, e.c});
  const Array y = t.empty<Acc<T>>({e.a, e.c}), dx = t.empty<T>({e.a, e.r, e.c});
  const Array mean = t.empty<double>({e.a, e.c});
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.reduce, ctx,
                {.x = view(x),
                 .y = view(y),
                 .op = static_cast<balora_reduce_op>(op),
                 .correction = kCorrection}) |
           call(k.reduce, ctx, {.x = view(x), .y = view(mean), .op = BALORA_MEAN, .correction = 0});
  });
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.reduce_backward, ctx,
                {.dy = view(dy),
                 .x = view(x),
                 .y = view(y),
                 .dx = view(dx),
                 .op = static_cast<balora_reduce_op>(op),
                 .correction = kCorrection});
  });
  std::vector<double> truth;
  for (int64_t i = 0; i < x->size(); ++i) {
    const int64_t o = i / (e.r * e.c) * e.c + i % e.c;
    const double slope = op == BALORA_VARIANCE ? 2 / (static_cast<double>(e.r) - kCorrection) *
                                                     (x->host(i) - mean->host(o))
                                               : std::exp(x->host(i) - y->host(o));
    truth.push_back(slope * dy->host(o));
  }
  t.check_truth(dx, truth, 4 * epsilon_of<T>());
}

TEST_CASE_TEMPLATE("the gradients of logsumexp and variance match f64", T, BALORA_FLOAT_TYPES) {
  for (const int32_t op : {BALORA_LOGSUMEXP, BALORA_VARIANCE}) {
    for (const Extent& e : kExtents) check_backward<T>(e, op);
  }
}

template <typename T>
void check_extreme(const Extent& e, double scale, bool values, bool positions) {
  CAPTURE(e.r);
  CAPTURE(e.c);
  for (const int32_t is_max : {0, 1}) {
    DeviceTest t;
    const Array x = t.random<T>({e.a, e.r, e.c}, scale);
    for (int64_t i = 0; i < x->size(); ++i) x->set(i, std::round(x->host(i)));  // ties
    const Array best = values ? t.empty<T>({e.a, e.c}) : nullptr;
    const Array at = positions ? t.empty<int32_t>({e.a, e.c}) : nullptr;
    t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      return call(k.extreme, ctx,
                  {.x = view(x), .values = view(best), .positions = view(at), .is_max = is_max});
    });
    if (best) t.check_equal(best);
    if (at) t.check_equal(at);
  }
}

TEST_CASE("extreme finds the first position among ties") {
  for (const Extent& e : kExtents) {
    check_extreme<float>(e, 5, true, true);
    check_extreme<bf16>(e, 2, true, true);
    check_extreme<f16>(e, 200, true, false);
    check_extreme<double>(e, 3, false, true);
  }
  check_extreme<float>({1, 50000, 1}, 20'000, true, true);
  check_extreme<bf16>({2, 1300, 3}, 1, true, true);
}

TEST_CASE("reductions treat infinities and NaN as the CPU does") {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
  const std::vector<double> rows = {-inf, -inf, -inf, -inf, inf,  1,   2,   inf, nan, 1, inf, 3,
                                    inf,  nan,  2,    nan,  -inf, 0.5, inf, 2,   -0., 0, -0., 0};
  for (const bool middle : {false, true}) {
    for (const int32_t op : {BALORA_SUM, BALORA_MEAN, BALORA_LOGSUMEXP, BALORA_VARIANCE}) {
      CAPTURE(op);
      DeviceTest t;
      const std::vector<int64_t> shape =
          middle ? std::vector<int64_t>{1, 4, 6} : std::vector<int64_t>{6, 4, 1};
      const Array x = t.values<float>(shape, rows);
      const Array y = t.empty<float>({middle ? 1 : 6, middle ? 6 : 1});
      const Array best = t.empty<float>({middle ? 1 : 6, middle ? 6 : 1});
      const Array at = t.empty<int32_t>({middle ? 1 : 6, middle ? 6 : 1});
      t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
        return call(k.reduce, ctx,
                    {.x = view(x),
                     .y = view(y),
                     .op = static_cast<balora_reduce_op>(op),
                     .correction = 1}) |
               call(k.extreme, ctx,
                    {.x = view(x),
                     .values = view(best),
                     .positions = view(at),
                     .is_max = op == BALORA_SUM});
      });
      t.check_close(y, 1e-6);
      t.check_equal(best);
      t.check_equal(at);
    }
  }
}

}  // namespace
