// RMSNorm on the device against f64 sums: short rows (a warp each), long ones (a block), rows that
// do not fit into registers, sizes that cannot be moved in 16 bytes, and more rows than groups.
#include "support/device_test.h"

namespace {

using namespace balora;
using namespace balora::test;

struct Case {
  int64_t n, c;
  double offset = 0;
  int32_t cast = 0;
};

const std::vector<Case> kCases = {{1, 1},       {3, 31, 1},     {5, 33, 0, 1},
                                  {4, 123},     {2, 576, 0, 1}, {7, 64, 1},
                                  {2, 1025, 1}, {3, 1024},      {2, 2056, 1}};

struct Truth {
  std::vector<double> y, rstd;
};
Truth forward(const Case& s, const Operand& x, const Operand& w) {
  Truth t;
  for (int64_t n = 0; n < s.n; ++n) {
    double squares = 0;
    for (int64_t c = 0; c < s.c; ++c) {
      const double value = x.host(n * s.c + c);
      squares += value * value;
    }
    t.rstd.push_back(1 / std::sqrt(squares / static_cast<double>(s.c) + 1e-5));
    for (int64_t c = 0; c < s.c; ++c) {
      t.y.push_back(x.host(n * s.c + c) * t.rstd.back() * (w.host(c) + s.offset));
    }
  }
  return t;
}

template <typename T>
void check_forward(const Case& s) {
  CAPTURE(s.n);
  CAPTURE(s.c);
  DeviceTest t;
  const Array x = t.random<T>({s.n, s.c}, 2), r = t.random<T>({s.n, s.c}), w = t.random<T>({s.c});
  const Array y = t.empty<T>({s.n, s.c}), sum = t.empty<T>({s.n, s.c}), y2 = t.empty<T>({s.n, s.c});
  const Array rstd = t.empty<Acc<T>>({s.n}), rstd2 = t.empty<Acc<T>>({s.n});
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.rms_norm_forward, ctx,
                {.x = view(x),
                 .weight = view(w),
                 .y = view(y),
                 .rstd = view(rstd),
                 .eps = 1e-5,
                 .weight_offset = s.offset,
                 .cast_before_weight = s.cast}) |
           call(k.rms_norm_add_forward, ctx,
                {.x = view(x),
                 .residual = view(r),
                 .weight = view(w),
                 .sum = view(sum),
                 .y = view(y2),
                 .rstd = view(rstd2),
                 .eps = 1e-5,
                 .weight_offset = s.offset,
                 .cast_before_weight = s.cast});
  });
  const double wide = 4 * epsilon_of<Acc<T>>();
  const Truth plain = forward(s, *x, *w), added = forward(s, *sum, *w);
  t.check_equal(sum);
  t.check_truth(y, plain.y, epsilon_of<T>());
  t.check_truth(rstd, plain.rstd, wide);
  t.check_truth(y2, added.y, epsilon_of<T>());
  t.check_truth(rstd2, added.rstd, wide);
}

template <typename T>
void check_backward(const Case& s, bool with_dsum, bool wants_x, bool wants_weight) {
  CAPTURE(s.n);
  CAPTURE(s.c);
  DeviceTest t;
  const Array x = t.random<T>({s.n, s.c}, 2), w = t.random<T>({s.c}), dy = t.random<T>({s.n, s.c});
  const Array dsum = with_dsum ? t.random<T>({s.n, s.c}) : nullptr;
  const Array dx = wants_x ? t.empty<T>({s.n, s.c}) : nullptr;
  const Array dw = wants_weight ? t.empty<Acc<T>>({s.c}) : nullptr;
  const Truth norm = forward(s, *x, *w);
  const Array rstd = t.values<Acc<T>>({s.n}, norm.rstd);
  t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
    return call(k.rms_norm_backward, ctx,
                {.dy = view(dy),
                 .dsum = view(dsum),
                 .x = view(x),
                 .weight = view(w),
                 .rstd = view(rstd),
                 .dx = view(dx),
                 .dweight = view(dw),
                 .weight_offset = s.offset,
                 .cast_before_weight = s.cast});
  });
  std::vector<double> true_dx, true_dw(static_cast<size_t>(s.c), 0);
  for (int64_t n = 0; n < s.n; ++n) {
    const double scale = rstd->host(n);
    double dot = 0;
    for (int64_t c = 0; c < s.c; ++c) {
      const int64_t i = n * s.c + c;
      dot += dy->host(i) * (w->host(c) + s.offset) * x->host(i);
      double unit = x->host(i) * scale;
      if (s.cast && std::is_same_v<T, bf16>) unit = to_float(to_bf16(static_cast<float>(unit)));
      true_dw[static_cast<size_t>(c)] += dy->host(i) * unit;
    }
    for (int64_t c = 0; c < s.c; ++c) {
      const int64_t i = n * s.c + c;
      const double through = dy->host(i) * (w->host(c) + s.offset) -
                             x->host(i) * dot * scale * scale / static_cast<double>(s.c);
      true_dx.push_back(scale * through + (dsum ? dsum->host(i) : 0));
    }
  }
  if (dx) t.check_truth(dx, true_dx, 2 * epsilon_of<T>());
  if (dw) t.check_truth(dw, true_dw, 8 * epsilon_of<Acc<T>>());
}

template <typename T>
void check_all() {
  for (const Case& s : kCases) {
    check_forward<T>(s);
    check_backward<T>(s, false, true, true);
    check_backward<T>(s, true, true, false);
  }
  check_backward<T>({5, 40}, false, false, true);
}

TEST_CASE_TEMPLATE("rms_norm forward, with a residual, and backward match f64 sums", T,
                   BALORA_FLOAT_TYPES) {
  check_all<T>();
}

TEST_CASE("rms_norm of rows that do not fit into registers") {
  check_forward<float>({2, 8192 + 100});
  check_backward<float>({3, 4096 + 100}, true, true, true);
  check_forward<bf16>({1, 16384 + 72, 1, 1});
  check_backward<bf16>({2, 8192 + 72}, false, true, true);
}

TEST_CASE("rms_norm's weight gradient over more rows than groups, and over none") {
  check_backward<float>({1100, 9}, false, true, true);
  check_backward<bf16>({0, 24}, false, true, true);
  check_forward<float>({0, 24});
}

}  // namespace
