// LayerNorm on the device against f64 sums: with and without weight and bias, short and long rows,
// rows that do not fit into registers, odd sizes, and more rows than groups.
#include "support/device_test.h"

namespace {

using namespace balora;
using namespace balora::test;

struct Case {
  int64_t n, c;
  bool weight = true, bias = true;
};

struct Truth {
  std::vector<double> y, mean, rstd, dx, dweight, dbias;
};

// dy may be null.
Truth truth_of(const Case& s, const Operand& x, const Operand* w, const Operand* b,
               const Operand* dy) {
  Truth t;
  const auto count = static_cast<double>(s.c);
  t.dweight.assign(static_cast<size_t>(s.c), 0);
  t.dbias.assign(static_cast<size_t>(s.c), 0);
  for (int64_t n = 0; n < s.n; ++n) {
    double sum = 0, squares = 0, dot = 0, slope = 0;
    for (int64_t c = 0; c < s.c; ++c) sum += x.host(n * s.c + c);
    const double mean = sum / count;
    for (int64_t c = 0; c < s.c; ++c) squares += std::pow(x.host(n * s.c + c) - mean, 2);
    const double rstd = 1 / std::sqrt(squares / count + 1e-5);
    t.mean.push_back(mean);
    t.rstd.push_back(rstd);
    for (int64_t c = 0; c < s.c; ++c) {
      const double unit = (x.host(n * s.c + c) - mean) * rstd, weight = w ? w->host(c) : 1;
      t.y.push_back(unit * weight + (b ? b->host(c) : 0));
      if (!dy) continue;
      const double g = dy->host(n * s.c + c);
      t.dweight[static_cast<size_t>(c)] += g * unit;
      t.dbias[static_cast<size_t>(c)] += g;
      slope += g * weight / count;
      dot += g * weight * unit / count;
    }
    for (int64_t c = 0; dy && c < s.c; ++c) {
      const double unit = (x.host(n * s.c + c) - mean) * rstd, weight = w ? w->host(c) : 1;
      t.dx.push_back(rstd * (dy->host(n * s.c + c) * weight - slope - unit * dot));
    }
  }
  return t;
}

template <typename T>
void check(const Case& s, bool wants_x = true, bool wants_weight = true, bool wants_bias = true) {
  CAPTURE(s.n);
  CAPTURE(s.c);
  DeviceTest t;
  const Array x = t.random<T>({s.n, s.c}, 2), dy = t.random<T>({s.n, s.c});
  for (int64_t i = 0; i < x->size(); ++i) x->set(i, x->host(i) + 1);
  const Array w = s.weight ? t.random<T>({s.c}) : nullptr;
  const Array b = s.bias ? t.random<T>({s.c}) : nullptr;
  const Array y = t.empty<T>({s.n, s.c});
  const Array mean = t.empty<Acc<T>>({s.n}), rstd = t.empty<Acc<T>>({s.n});
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.layer_norm_forward, ctx,
                {.x = view(x),
                 .weight = view(w),
                 .bias = view(b),
                 .y = view(y),
                 .mean = view(mean),
                 .rstd = view(rstd),
                 .eps = 1e-5});
  });
  const double wide = 8 * epsilon_of<Acc<T>>();
  const Truth truth = truth_of(s, *x, w.get(), b.get(), dy.get());
  t.check_truth(y, truth.y, epsilon_of<T>() + wide);
  t.check_truth(mean, truth.mean, wide);
  t.check_truth(rstd, truth.rstd, wide);

  const Array dx = wants_x ? t.empty<T>({s.n, s.c}) : nullptr;
  const Array dw = wants_weight ? t.empty<Acc<T>>({s.c}) : nullptr;
  const Array db = wants_bias ? t.empty<Acc<T>>({s.c}) : nullptr;
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.layer_norm_backward, ctx,
                {.dy = view(dy),
                 .x = view(x),
                 .weight = view(w),
                 .mean = view(mean),
                 .rstd = view(rstd),
                 .dx = view(dx),
                 .dweight = view(dw),
                 .dbias = view(db)});
  });
  if (dx) t.check_truth(dx, truth.dx, 2 * epsilon_of<T>() + wide);
  if (dw) t.check_truth(dw, truth.dweight, wide);
  if (db) t.check_truth(db, truth.dbias, wide);
}

template <typename T>
void check_all() {
  check<T>({1, 1});
  check<T>({3, 31, false, true});
  check<T>({5, 33, true, false});
  check<T>({4, 123, false, false});
  check<T>({2, 768}, true, true, false);
  check<T>({7, 64}, true, false, true);
  check<T>({2, 1025}, false, true, true);
  check<T>({2, 2056}, true, false, false);
}

TEST_CASE_TEMPLATE("layer_norm forward and backward match f64 sums", T, BALORA_FLOAT_TYPES) {
  check_all<T>();
}

TEST_CASE("layer_norm of rows that do not fit into registers") {
  check<float>({3, 4096 + 100});
  check<bf16>({2, 8192 + 72});
}

TEST_CASE("layer_norm's channel gradients over more rows than groups, and over none") {
  check<float>({1100, 9});
  check<bf16>({0, 24});
}

}  // namespace
