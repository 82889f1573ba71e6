// A linear's rows do not depend on each other where that is asked for, and never do in bf16 on
// tiles: the same bits for a row alone, among others, and for any number of threads, with a bias,
// low-rank parts and an output scale; and the right values, in every type and at odd sizes.
#include <doctest/doctest.h>

#include "kernels/cpu/products/row_product.h"
#include "support/kernel_test.h"
#include "support/linear_rows_case.h"

namespace {

using namespace balora;
using namespace balora::test;

using Case = LinearRowsCase;

template <typename T>
class Layer {
 public:
  // The part has a start if its form is SINCE_START.
  explicit Layer(const Case& c, int32_t form = BALORA_LOW_RANK_SINCE_START)
      : c_(c),
        form_(form),
        x_({c.rows, c.in}, random_),
        w_({c.outs, c.in}, random_, 0.5),
        bias_({c.outs}, random_),
        a_({c.rank, c.in}, random_),
        b_({c.outs, c.rank}, random_),
        start_a_({c.rank, c.in}, random_),
        start_b_({c.outs, c.rank}, random_),
        scale_({c.outs}, random_) {}

  // Rows [first, first + count) of the result.
  Array<T> rows(int64_t first, int64_t count, int threads = 2) {
    TestContext ctx(threads);
    Array<T> y({count, c_.outs});
    Array<Acc<T>> u({count, c_.rank});
    View x = x_.view(), w = w_.view(), bias = bias_.view(), vy = y.view(), scale = scale_.view();
    View a = a_.view(), b = b_.view(), sa = start_a_.view(), sb = start_b_.view(), vu = u.view();
    x.data = x_.data() + first * c_.in;
    x.shape[0] = count;
    const balora_low_rank part{.a = &a,
                               .b = &b,
                               .start_a = has_start() ? &sa : nullptr,
                               .start_b = has_start() ? &sb : nullptr,
                               .u = &vu,
                               .scale = 0.5,
                               .form = form_};
    const balora_linear linear{.weight = {.dense = &w},
                               .bias = &bias,
                               .output_scale = c_.scaled ? &scale : nullptr,
                               .y = &vy,
                               .parts = &part,
                               .part_count = c_.rank > 0 ? 1 : 0};
    REQUIRE(linear_forward_kernel(
                ctx, {.x = &x, .linears = &linear, .count = 1, .batch_invariant = 1}) == 0);
    return y;
  }

  // The sum of a result, and of the magnitudes of its products.
  std::pair<double, double> definition(int64_t n, int64_t o) const {
    double sum = 0, magnitude = 0;
    const auto add = [&](double product) { sum += product, magnitude += std::abs(product); };
    for (int64_t k = 0; k < c_.in; ++k) add(x_[n * c_.in + k] * w_[o * c_.in + k]);
    for (int64_t r = 0; r < c_.rank; ++r) {
      for (int64_t k = 0; k < c_.in; ++k) {
        const double x = 0.5 * x_[n * c_.in + k];
        add(x * a_[r * c_.in + k] * b_[o * c_.rank + r]);
        if (has_start()) add(-x * start_a_[r * c_.in + k] * start_b_[o * c_.rank + r]);
      }
    }
    if (c_.scaled) sum *= scale_[o], magnitude *= std::abs(scale_[o]);
    add(bias_[o]);
    return {sum, magnitude};
  }

 private:
  bool has_start() const { return form_ == BALORA_LOW_RANK_SINCE_START; }

  Case c_;
  int32_t form_;
  std::mt19937 random_{11};
  Array<T> x_, w_, bias_;
  Array<Acc<T>> a_, b_, start_a_, start_b_, scale_;
};

std::vector<Case> cases() {
  return {{1, 1, 1, 0},      {5, 31, 7, 0},         {37, 64, 65, 0},
          {70, 100, 33, 3},  {33, 96, 40, 4, true}, {19, 577, 70, 0},
          {130, 32, 96, 16}, {5, 64, 32, 0},        {70, 1541, 231, 2}};
}

TEST_CASE_TEMPLATE("linear: rows do not depend on each other", T, float, bf16, f16, double) {
  for (const Case& c : cases()) {
    CAPTURE(c.in);
    CAPTURE(c.outs);
    Layer<T> layer(c);
    const Array<T> all = layer.rows(0, c.rows);
    const auto same = [&](int64_t first, int64_t count, int threads) {
      const Array<T> some = layer.rows(first, count, threads);
      const size_t bytes = static_cast<size_t>(count * c.outs) * sizeof(T);
      return std::memcmp(some.data(), all.data() + first * c.outs, bytes) == 0;
    };
    for (const int threads : {1, 3, 5, 8}) CHECK(same(0, c.rows, threads));
    for (const int64_t count : {1, 2, 3, 4, 6, 9, 16, 17, 32, 64}) {
      if (count > c.rows) continue;
      CAPTURE(count);
      CHECK(same(0, count, 2));
      CHECK(same(c.rows - count, count, 1));
    }
  }
}

// Weights of one part or several that a core keeps, in tiles: in the last one threads take each
// other's rows. Where there are more threads than cores, some are late.
TEST_CASE("linear: who computes a row does not change it") {
  for (const Case& c : {Case{96, 576, 800, 16}, Case{192, 576, 800, 16}, Case{192, 576, 96, 16},
                        Case{192, 1600, 288}, Case{320, 96, 160, 16}}) {
    CAPTURE(c.rows);
    CAPTURE(c.outs);
    Layer<bf16> layer(c);
    const Array<bf16> alone = layer.rows(0, c.rows, 1);
    for (int run = 0; run < 4; ++run) {
      for (const int threads : {2, 3, 5}) {
        CAPTURE(threads);
        const Array<bf16> shared = layer.rows(0, c.rows, threads);
        const size_t bytes = static_cast<size_t>(alone.size()) * sizeof(bf16);
        REQUIRE(std::memcmp(shared.data(), alone.data(), bytes) == 0);
      }
    }
  }
}

TEST_CASE_TEMPLATE("linear: rows that do not depend on each other are right", T, float, bf16, f16,
                   double) {
  for (const Case& c : cases()) {
    CAPTURE(c.in);
    CAPTURE(c.outs);
    Layer<T> layer(c,
                   std::is_same_v<T, bf16> ? BALORA_LOW_RANK_EXACT : BALORA_LOW_RANK_SINCE_START);
    const Array<T> y = layer.rows(0, c.rows);
    const double relative = std::is_same_v<T, double> ? 1e-14
                            : std::is_same_v<T, bf16> ? 0x1p-15
                                                      : 0x1p-20;
    for (int64_t i = 0; i < y.size(); ++i) {
      const auto [want, magnitude] = layer.definition(i / c.outs, i % c.outs);
      const double allowed = epsilon_of<T>() * std::abs(want) + relative * magnitude + 0x1p-24;
      const bool close = std::abs(y[i] - want) <= allowed;
      CHECK_MESSAGE(close, "index ", i, ": got ", y[i], ", expected ", want);
      if (!close) break;
    }
  }
}

}  // namespace
