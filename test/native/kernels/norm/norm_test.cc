// rmsNorm, rmsNorm with a residual, and layerNorm against their definitions in double, every float
// type, odd sizes.
#include <doctest/doctest.h>

#include "support/kernel_test.h"

namespace {

using namespace balora;
using namespace balora::test;

// Storage roundings on the way (the cast before the weight, then the store) plus f32 sums.
template <typename T>
double tolerance() {
  return 4 * epsilon_of<T>() + (std::is_same_v<T, double> ? 1e-13 : 4e-6);
}

struct RmsReference {
  std::vector<double> y, dx, dw;
};

RmsReference rms_reference(const std::vector<double>& x, const std::vector<double>& w,
                           const std::vector<double>& dy, int64_t rows, int64_t channels,
                           double eps, double offset) {
  RmsReference out{x, x, std::vector<double>(w.size(), 0)};
  for (int64_t n = 0; n < rows; ++n) {
    double squares = 0, dot = 0;
    for (int64_t c = 0; c < channels; ++c) squares += x[n * channels + c] * x[n * channels + c];
    const double rstd = 1 / std::sqrt(squares / static_cast<double>(channels) + eps);
    for (int64_t c = 0; c < channels; ++c) {
      dot += dy[n * channels + c] * (w[c] + offset) * x[n * channels + c];
    }
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t i = n * channels + c;
      out.y[i] = x[i] * rstd * (w[c] + offset);
      out.dx[i] = rstd * (dy[i] * (w[c] + offset) -
                          x[i] * rstd * rstd * dot / static_cast<double>(channels));
      out.dw[c] += dy[i] * x[i] * rstd;
    }
  }
  return out;
}

template <typename T>
void check_rms(int64_t rows, int64_t channels, double offset, int32_t cast_first) {
  CAPTURE(rows);
  CAPTURE(channels);
  std::mt19937 random(7);
  TestContext ctx;
  Array<T> x({rows, channels}, random), w({channels}, random), dy({rows, channels}, random);
  Array<T> y({rows, channels}), dx({rows, channels});
  Array<Acc<T>> rstd({rows}), dw({channels});
  View vx = x.view(), vw = w.view(), vdy = dy.view(), vy = y.view(), vr = rstd.view();
  View vdx = dx.view(), vdw = dw.view();
  REQUIRE(rms_norm_forward_kernel(ctx, {.x = &vx,
                                        .weight = &vw,
                                        .y = &vy,
                                        .rstd = &vr,
                                        .eps = 1e-5,
                                        .weight_offset = offset,
                                        .cast_before_weight = cast_first}) == 0);
  balora_rms_norm_backward backward = {.dy = &vdy,
                                       .x = &vx,
                                       .weight = &vw,
                                       .rstd = &vr,
                                       .dx = &vdx,
                                       .dweight = &vdw,
                                       .weight_offset = offset,
                                       .cast_before_weight = cast_first};
  REQUIRE(rms_norm_backward_kernel(ctx, backward) == 0);
  const auto want =
      rms_reference(x.values(), w.values(), dy.values(), rows, channels, 1e-5, offset);
  // For one channel dx is a difference of near equals, times an rstd of up to 1/sqrt(eps).
  const double dx_tolerance = (channels == 1 ? 16 : 1) * tolerance<T>();
  check_close(y, want.y, tolerance<T>());
  check_close(dx, want.dx, dx_tolerance);
  check_close(dw, want.dw, tolerance<T>() * std::sqrt(static_cast<double>(rows)));

  // The same with the residual: sum is what the plain norm then sees, dsum joins dx.
  Array<T> residual({rows, channels}, random), sum({rows, channels}), y2({rows, channels});
  Array<T> dsum({rows, channels}, random), dx2({rows, channels});
  View vres = residual.view(), vsum = sum.view(), vy2 = y2.view(), vds = dsum.view();
  View vdx2 = dx2.view();
  REQUIRE(rms_norm_add_forward_kernel(ctx, {.x = &vx,
                                            .residual = &vres,
                                            .weight = &vw,
                                            .sum = &vsum,
                                            .y = &vy2,
                                            .rstd = &vr,
                                            .eps = 1e-5,
                                            .weight_offset = offset,
                                            .cast_before_weight = cast_first}) == 0);
  for (int64_t i = 0; i < sum.size(); ++i) {
    REQUIRE(sum[i] == to_double(from_double<T>(x[i] + residual[i])));
  }
  backward.dsum = &vds, backward.x = &vsum, backward.dx = &vdx2, backward.dweight = nullptr;
  REQUIRE(rms_norm_backward_kernel(ctx, backward) == 0);
  auto want_sum =
      rms_reference(sum.values(), w.values(), dy.values(), rows, channels, 1e-5, offset);
  check_close(y2, want_sum.y, tolerance<T>());
  for (int64_t i = 0; i < sum.size(); ++i) want_sum.dx[i] += dsum[i];
  check_close(dx2, want_sum.dx, dx_tolerance);
}

TEST_CASE_TEMPLATE("rms_norm and rms_norm_add equal their definitions", T, float, bf16, f16,
                   double) {
  for (const int64_t channels : {1, 31, 33, 123}) {
    for (const int64_t rows : {1, 33, 70}) {
      check_rms<T>(rows, channels, 0, 1);
      check_rms<T>(rows, channels, 1, 0);
    }
  }
}

TEST_CASE("rms_norm rounds to bf16 before the weight only where that is wanted") {
  TestContext ctx;
  Array<bf16> x({1, 2}, std::vector<double>{1.0, 0.71875}), w({2}, std::vector<double>{3.0, 3.0});
  Array<bf16> cast({1, 2}), late({1, 2});
  Array<float> rstd({1});
  View vx = x.view(), vw = w.view(), vc = cast.view(), vl = late.view(), vr = rstd.view();
  const auto norm = [&](View& y, int32_t cast_first) {
    return rms_norm_forward_kernel(ctx, {.x = &vx,
                                         .weight = &vw,
                                         .y = &y,
                                         .rstd = &vr,
                                         .eps = 1e-6,
                                         .cast_before_weight = cast_first});
  };
  REQUIRE(norm(vc, 1) == 0);
  REQUIRE(norm(vl, 0) == 0);
  for (int64_t i = 0; i < 2; ++i) {
    const float normed = static_cast<float>(x[i]) * rstd.data()[0];
    CHECK(cast[i] == to_float(to_bf16(to_float(to_bf16(normed)) * 3.0f)));
    CHECK(late[i] == to_float(to_bf16(normed * 3.0f)));
  }
}

template <typename T>
void check_layer_norm(int64_t rows, int64_t channels, bool affine) {
  CAPTURE(rows);
  CAPTURE(channels);
  std::mt19937 random(8);
  TestContext ctx;
  Array<T> x({rows, channels}, random, 3), w({channels}, random), b({channels}, random);
  Array<T> dy({rows, channels}, random), y({rows, channels}), dx({rows, channels});
  Array<Acc<T>> mean({rows}), rstd({rows}), dw({channels}), db({channels});
  View vx = x.view(), vw = w.view(), vb = b.view(), vdy = dy.view(), vy = y.view();
  View vdx = dx.view(), vm = mean.view(), vr = rstd.view(), vdw = dw.view(), vdb = db.view();
  const double eps = 1e-3;
  const auto affine_only = [&](View& view) { return affine ? &view : nullptr; };
  REQUIRE(layer_norm_forward_kernel(ctx, {.x = &vx,
                                          .weight = affine_only(vw),
                                          .bias = affine_only(vb),
                                          .y = &vy,
                                          .mean = &vm,
                                          .rstd = &vr,
                                          .eps = eps}) == 0);
  REQUIRE(layer_norm_backward_kernel(ctx, {.dy = &vdy,
                                           .x = &vx,
                                           .weight = affine_only(vw),
                                           .mean = &vm,
                                           .rstd = &vr,
                                           .dx = &vdx,
                                           .dweight = affine_only(vdw),
                                           .dbias = affine_only(vdb)}) == 0);
  std::vector<double> want_y, want_dx, want_dw(channels, 0), want_db(channels, 0);
  for (int64_t n = 0; n < rows; ++n) {
    const auto at = [&](const Array<T>& a, int64_t c) { return a[n * channels + c]; };
    const auto weight = [&](int64_t c) { return affine ? w[c] : 1.0; };
    const double size = static_cast<double>(channels);
    double m = 0, variance = 0, sum = 0, dot = 0;
    for (int64_t c = 0; c < channels; ++c) m += at(x, c) / size;
    for (int64_t c = 0; c < channels; ++c) variance += (at(x, c) - m) * (at(x, c) - m) / size;
    const double r = 1 / std::sqrt(variance + eps);
    for (int64_t c = 0; c < channels; ++c) {
      const double normed = (at(x, c) - m) * r;
      sum += at(dy, c) * weight(c) / size;
      dot += at(dy, c) * weight(c) * normed / size;
      want_y.push_back(normed * weight(c) + (affine ? b[c] : 0));
      want_dw[c] += at(dy, c) * normed;
      want_db[c] += at(dy, c);
    }
    for (int64_t c = 0; c < channels; ++c) {
      want_dx.push_back(r * (at(dy, c) * weight(c) - sum - (at(x, c) - m) * r * dot));
    }
  }
  // A single channel has no variance: rstd is 1/sqrt(eps), which magnifies every rounding.
  const double scale = channels == 1 ? 32 : 1;
  check_close(y, want_y, scale * tolerance<T>());
  check_close(dx, want_dx, scale * tolerance<T>());
  if (!affine) return;
  check_close(dw, want_dw, tolerance<T>() * std::sqrt(static_cast<double>(rows)));
  check_close(db, want_db, tolerance<T>() * std::sqrt(static_cast<double>(rows)));
}

TEST_CASE_TEMPLATE("layer_norm equals its definition", T, float, bf16, f16, double) {
  for (const int64_t channels : {1, 31, 33, 123}) {
    check_layer_norm<T>(33, channels, true);
    check_layer_norm<T>(1, channels, false);
  }
}

TEST_CASE("norms give the same bits for a given thread count, and dx for any") {
  std::mt19937 random(9);
  Array<float> x({200, 64}, random), w({64}, random), dy({200, 64}, random);
  Array<float> rstd({200}), y({200, 64});
  std::vector<std::vector<double>> dxs, dws;
  for (const int threads : {1, 2, 2}) {
    TestContext ctx(threads);
    Array<float> dx({200, 64}), dw({64});
    View vx = x.view(), vw = w.view(), vdy = dy.view(), vy = y.view(), vr = rstd.view();
    View vdx = dx.view(), vdw = dw.view();
    REQUIRE(rms_norm_forward_kernel(ctx, {.x = &vx,
                                          .weight = &vw,
                                          .y = &vy,
                                          .rstd = &vr,
                                          .eps = 1e-5,
                                          .cast_before_weight = 1}) == 0);
    REQUIRE(rms_norm_backward_kernel(ctx, {.dy = &vdy,
                                           .x = &vx,
                                           .weight = &vw,
                                           .rstd = &vr,
                                           .dx = &vdx,
                                           .dweight = &vdw,
                                           .cast_before_weight = 1}) == 0);
    dxs.push_back(dx.values());
    dws.push_back(dw.values());
  }
  CHECK(dxs[0] == dxs[1]);
  CHECK(dws[1] == dws[2]);
}

}  // namespace
