// The errors of a pair since its start in bf16, y, dx, da and db against f64, beside those of plain
// LoRA and of both halves: of pairs that have moved by nothing to four times their start, and of
// those that have turned to its negative. W is the
// negative of what the pair adds, rounded to bf16, so that y and dx are small and their own
// roundings do not hide what the pair loses.
#include <doctest/doctest.h>

#include <cmath>

#include "kernels/cpu/products/tiles.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "support/kernel_test.h"

namespace balora::test {
namespace {

constexpr int64_t kRows = 96, kIn = 160, kOuts = 128, kRank = 16;
constexpr double kScale = 0.5;

using Values = std::vector<double>;

// The root of the mean square of `error`.
double rms(const Values& error) {
  double sum = 0;
  for (const double e : error) sum += e * e;
  return std::sqrt(sum / static_cast<double>(error.size()));
}
Values difference(const Values& x, const Values& y) {
  Values out(x.size());
  for (size_t i = 0; i < x.size(); ++i) out[i] = x[i] - y[i];
  return out;
}
// x (m,k) y (k,n), each of which may be stored transposed.
Values product(const Values& x, bool x_transposed, const Values& y, bool y_transposed, int64_t m,
               int64_t k, int64_t n) {
  Values out(static_cast<size_t>(m * n));
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t l = 0; l < k; ++l) {
        sum += x[static_cast<size_t>(x_transposed ? l * m + i : i * k + l)] *
               y[static_cast<size_t>(y_transposed ? j * k + l : l * n + j)];
      }
      out[static_cast<size_t>(i * n + j)] = sum;
    }
  }
  return out;
}
Values scaled(Values x, double factor) {
  for (double& value : x) value *= factor;
  return x;
}

struct Factors {
  Array<float> a, b;

  Values product_of() const {
    return scaled(product(b.values(), false, a.values(), false, kOuts, kRank, kIn), kScale);
  }
};

// Errors of y, dx, da and db.
struct Errors {
  double y, dx, da, db;
};

class PairErrors {
 public:
  PairErrors()
      : x_({kRows, kIn}, random_), dy_({kRows, kOuts}, random_), start_(random_factors()) {}

  // A and B moved by `distance` times the norms of their start, in a random direction.
  Factors moved(double distance) {
    Factors to = random_factors();
    move(start_.a, to.a, 1, distance), move(start_.b, to.b, 1, distance);
    return to;
  }
  // Near the negatives of A0 and B0, where the two terms of a pair cancel.
  Factors turned(double distance) {
    Factors to = random_factors();
    move(start_.a, to.a, -1, distance), move(start_.b, to.b, -1, distance);
    return to;
  }

  Errors of_pair(Factors& now) {
    View start_a = start_.a.view(), start_b = start_.b.view();
    return errors(now, difference(now.product_of(), start_.product_of()),
                  {{.start_a = &start_a,
                    .start_b = &start_b,
                    .scale = kScale,
                    .form = BALORA_LOW_RANK_SINCE_START}});
  }
  // Plain LoRA with the same factors.
  Errors of_lora(Factors& now) {
    return errors(now, now.product_of(), {{.scale = kScale, .form = BALORA_LOW_RANK_CHANGE}});
  }
  // The pair as two products of both halves.
  Errors of_halves(Factors& now) {
    View a = start_.a.view(), b = start_.b.view();
    return errors(now, difference(now.product_of(), start_.product_of()),
                  {{.scale = kScale}, {.a = &a, .b = &b, .scale = -kScale}});
  }
  // The rounding of y to bf16 where W has nothing but the start's product: y is the pair's alone.
  double rounding(const Factors& now) {
    Values y = product(x_.values(), false, now.product_of(), true, kRows, kIn, kOuts);
    for (double& value : y) value -= to_double(from_double<bf16>(value));
    return rms(y);
  }

 private:
  Factors random_factors() {
    return {Array<float>({kRank, kIn}, random_), Array<float>({kOuts, kRank}, random_)};
  }
  static void move(const Array<float>& start, Array<float>& to, double sign, double distance) {
    for (int64_t i = 0; i < start.size(); ++i) {
      to.data()[i] = static_cast<float>(sign * start[i] + distance * to[i]);
    }
  }

  Errors errors(Factors& now, const Values& change, std::vector<LowRankOperands> parts) {
    TestContext ctx;
    Array<bf16> w({kOuts, kIn}, scaled(change, -1));
    Array<bf16> y({kRows, kOuts}), dx({kRows, kIn});
    Array<float> u({kRows, kRank}), u_start({kRows, kRank}), da({kRank, kIn}), db({kOuts, kRank});
    const View vx = x_.view(), vw = w.view(), vy = y.view(), vdy = dy_.view(), vdx = dx.view();
    const View va = now.a.view(), vb = now.b.view(), vu = u.view(), vu_start = u_start.view();
    const View vda = da.view(), vdb = db.view();
    LowRankOperands& part = parts[0];
    part.a = &va, part.b = &vb, part.u = &vu, part.da = &vda, part.db = &vdb;
    if (parts.size() > 1) parts[1].u = &vu_start;
    LinearOperands linear = {.weight = {.dense = &vw},
                             .y = &vy,
                             .parts = parts.data(),
                             .part_count = static_cast<int32_t>(parts.size())};
    REQUIRE(linear_forward_kernel(ctx, {.x = &vx, .linears = &linear, .count = 1}) == 0);
    linear.y = &vdy;
    REQUIRE(linear_backward_kernel(ctx, {.x = &vx, .dx = &vdx, .linears = &linear, .count = 1}) ==
            0);
    Values sum = w.values();
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += change[i];
    const Values x = x_.values(), dy = dy_.values();
    const Values want_u = product(x, false, now.a.values(), true, kRows, kIn, kRank);
    const Values want_du =
        scaled(product(dy, false, now.b.values(), false, kRows, kOuts, kRank), kScale);
    const auto error = [](const Values& got, const Values& want) {
      return rms(difference(got, want));
    };
    return {
        error(y.values(), product(x, false, sum, true, kRows, kIn, kOuts)),
        error(dx.values(), product(dy, false, sum, false, kRows, kOuts, kIn)),
        error(da.values(), product(want_du, true, x, false, kRank, kRows, kIn)),
        error(db.values(), scaled(product(dy, true, want_u, false, kOuts, kRows, kRank), kScale))};
  }

  std::mt19937 random_{5};
  Array<bf16> x_, dy_;
  Factors start_;
};

// Whether the errors of a pair since its start are at most `factor` times those of plain LoRA with
// the same factors.
void check_within(PairErrors& pairs, Factors now, double factor) {
  const Errors pair = pairs.of_pair(now), lora = pairs.of_lora(now);
  CHECK(pair.y <= factor * lora.y);
  CHECK(pair.dx <= factor * lora.dx);
  CHECK(pair.da <= factor * lora.da);
  CHECK(pair.db <= factor * lora.db);
  const double rounding = pairs.rounding(now);
  CHECK(lora.y <= 2 * rounding);
  // Both halves lose next to nothing beside either.
  const Errors halves = pairs.of_halves(now);
  for (const double error :
       {halves.y / lora.y, halves.dx / lora.dx, halves.da / lora.da, halves.db / lora.db}) {
    CHECK(error <= 0x1p-7);
  }
}

TEST_CASE("linear: a pair since its start loses at most twice what plain LoRA loses, bf16") {
  if (!tiles_ready()) return;  // f32 throughout: nothing is lost
  PairErrors pairs;
  for (const double distance : {0.0, 0x1p-10, 0.25, 1.0, 4.0}) {
    CAPTURE(distance);
    check_within(pairs, pairs.moved(distance), 2);
  }
  check_within(pairs, pairs.turned(0), 2);
  // Its two terms cancel around there, though not their roundings.
  for (const double distance : {0x1p-10, 0.125, 0.5}) {
    CAPTURE(distance);
    check_within(pairs, pairs.turned(distance), 4);
  }
}

}  // namespace
}  // namespace balora::test
