// The linear layers' kernels against plain loops in f64, for every type: several linears on one
// input, low-rank parts (none, one, with a start), output scales, frozen and free weights, odd
// sizes, unwanted operands. The rule: |kernel - truth| <= |plain loops in the same type - truth| +
// a few roundings.
#include <doctest/doctest.h>

#include <array>
#include <cmath>

#include "kernels/cpu/runtime/cpu_kernels.h"
#include "support/kernel_test.h"

namespace balora::test {
namespace {

struct Part {
  int32_t linear;
  int64_t rank;
  double scale;
  // The size of what the part before this one has moved by from here: this one is its start then.
  // Below zero: this part is one of its own.
  double change = -1;
  bool is_change = false;  // see balora_low_rank
};

struct Case {
  int64_t rows, in;
  std::vector<int64_t> outs;
  std::vector<Part> parts;
  bool frozen = true, bias = true, adapter_input = false, scaled = false;
  bool changed = false;  // the weights of all linears but the second
};

// A sum of products and the error that f32 (f64) accumulation and bf16-pair factors
// may leave in it.
struct Sum {
  double value = 0, magnitude = 0;
  void add(double x, double y) { value += x * y, magnitude += std::abs(x * y); }
  void add(const Sum& s, double y) { value += s.value * y, magnitude += s.magnitude * std::abs(y); }
};

// `change`: that part of the magnitude which a pair since its start adds in single bf16, 2^-9 each
// for its two factors and what they are multiplied with.
template <typename T>
void check_sum(double got, const Sum& want, double storage_epsilon, const char* what, int64_t i,
               double change = 0) {
  // 16-bit pairs: each factor is off by 2^-17 of itself, and lo x lo is left out.
  const double relative = std::is_same_v<T, double> ? 0x1p-48
                          : std::is_same_v<T, bf16> ? 0x1p-15
                                                    : 0x1p-20;
  const double floor = std::is_same_v<T, f16> ? 0x1p-24 : 1e-30;
  const double allowed =
      storage_epsilon * std::abs(want.value) + relative * want.magnitude + 0x1p-7 * change + floor;
  const bool close = std::abs(got - want.value) <= allowed;
  CHECK_MESSAGE(close, what, "[", i, "]: got ", got, ", expected ", want.value, ", allowed ",
                allowed);
}

template <typename T>
class Fixture {
 public:
  using A = Acc<T>;
  explicit Fixture(const Case& c)
      : case_(c), x_({c.rows, c.in}, random_), xa_({c.rows, c.in}, random_) {
    slots_.resize(c.outs.size());
    for (const int64_t out : c.outs) {
      w_.emplace_back(std::vector<int64_t>{out, c.in}, random_, 0.5);
      weight_change_.emplace_back(std::vector<int64_t>{out, c.in}, random_, 0.25);
      bias_.emplace_back(std::vector<int64_t>{out}, random_);
      dy_.emplace_back(std::vector<int64_t>{c.rows, out}, random_);
      y_.emplace_back(std::vector<int64_t>{c.rows, out});
      scale_.emplace_back(std::vector<int64_t>{out}, random_, 2.0);
      unscaled_.emplace_back(std::vector<int64_t>{c.rows, out});
    }
    for (const Part& part : c.parts) {
      a_.emplace_back(std::vector<int64_t>{part.rank, c.in}, random_);
      b_.emplace_back(std::vector<int64_t>{c.outs[part.linear], part.rank}, random_);
      u_.emplace_back(std::vector<int64_t>{c.rows, part.rank});
      da_.emplace_back(std::vector<int64_t>{part.rank, c.in});
      db_.emplace_back(std::vector<int64_t>{c.outs[part.linear], part.rank});
      if (part.change < 0) continue;
      move_from(a_[a_.size() - 2], a_.back(), part.change);
      move_from(b_[b_.size() - 2], b_.back(), part.change);
    }
  }
  ~Fixture() {
    for (auto& slots : slots_) {
      for (balora_slot& slot : slots) {
        if (slot.data) slot.destroy(slot.data);
      }
    }
  }

  void forward() {
    make_views(y_);
    const View x = x_.view(), xa = xa_.view();
    REQUIRE(linear_forward_kernel(ctx_, {.x = &x,
                                         .x_adapter = case_.adapter_input ? &xa : nullptr,
                                         .linears = linears_.data(),
                                         .count = count(linears_)}) == 0);
    for (size_t l = 0; l < w_.size(); ++l) {
      const int64_t outs = case_.outs[l];
      for (int64_t i = 0; i < case_.rows * outs; ++i) {
        const int64_t n = i / outs, o = i % outs;
        Sum sum;
        for (int64_t k = 0; k < case_.in; ++k)
          sum.add(x_[n * case_.in + k], w_[l][o * case_.in + k]);
        for (int64_t k = 0; has_change(l) && k < case_.in; ++k)
          sum.add(adapter_x()[n * case_.in + k], weight_change_[l][o * case_.in + k]);
        for_parts(l, [&](size_t p, int64_t rank, double scale) {
          for (int64_t r = 0; r < rank; ++r) sum.add(u(p, n, r), scale * b_[p][o * rank + r]);
        });
        const double change = change_of_y(l, n, o);
        if (case_.scaled) {
          check_sum<T>(unscaled_[l][i], sum, epsilon_of<T>(), "unscaled", i, change);
        }
        const double scale = case_.scaled ? scale_[l][o] : 1;
        Sum y;
        y.add(sum, scale);
        if (case_.bias) y.add(bias_[l][o], 1);
        check_sum<T>(y_[l][i], y, epsilon_of<T>(), "y", i, change * std::abs(scale));
      }
    }
    for (size_t p = 0; p < a_.size(); ++p) {
      if (case_.parts[p].change >= 0) continue;
      for (int64_t i = 0; i < u_[p].size(); ++i) {
        const int64_t rank = case_.parts[p].rank;
        const Sum want = u(p, i / rank, i % rank);
        check_sum<T>(u_[p][i], want, 0, "u", i, rounded(p) * want.magnitude);
      }
    }
  }

  void backward(bool with_dx) {
    make_views(dy_);
    Array<T> dx({case_.rows, case_.in}), dxa({case_.rows, case_.in});
    const View x = x_.view(), xa = xa_.view(), vdx = dx.view(), vdxa = dxa.view();
    const bool split = case_.adapter_input;
    REQUIRE(linear_backward_kernel(ctx_, {.x = &x,
                                          .x_adapter = split ? &xa : nullptr,
                                          .dx = with_dx ? &vdx : nullptr,
                                          .dx_adapter = with_dx && split ? &vdxa : nullptr,
                                          .linears = linears_.data(),
                                          .count = count(linears_)}) == 0);
    for (size_t p = 0; p < a_.size(); ++p) check_part(p);
    for (int64_t i = 0; with_dx && i < dx.size(); ++i) {
      const int64_t n = i / case_.in, k = i % case_.in;
      Sum base, low_rank;
      for (size_t l = 0; l < w_.size(); ++l) {
        const int64_t outs = case_.outs[l];
        for (int64_t o = 0; o < outs; ++o) base.add(dy_[l][n * outs + o], w_[l][o * case_.in + k]);
        for_parts(l, [&](size_t p, int64_t rank, double) {
          for (int64_t r = 0; r < rank; ++r) {
            (split ? low_rank : base).add(du(p, n, r), a_[p][r * case_.in + k]);
          }
        });
      }
      const double change = change_of_dx(n, k);
      check_sum<T>(dx[i], base, epsilon_of<T>(), "dx", i, split ? 0 : change);
      if (split) check_sum<T>(dxa[i], low_rank, epsilon_of<T>(), "dx_adapter", i, change);
    }
  }

  // y of the first linear, to the bit.
  std::vector<double> first_outputs() const {
    std::vector<double> values;
    for (int64_t i = 0; i < y_[0].size(); ++i) values.push_back(y_[0][i]);
    return values;
  }

 private:
  template <typename V>
  static int32_t count(const V& v) {
    return static_cast<int32_t>(v.size());
  }
  template <typename Body>
  void for_parts(size_t linear, const Body& body) {
    for (size_t p = 0; p < case_.parts.size(); ++p) {
      const Part& part = case_.parts[p];
      if (static_cast<size_t>(part.linear) == linear) body(p, part.rank, part.scale);
    }
  }
  void move_from(Array<A>& moved, const Array<A>& start, double change) {
    std::uniform_real_distribution<double> uniform(-change, change);
    for (int64_t i = 0; i < start.size(); ++i) {
      moved.data()[i] = static_cast<A>(start[i] + uniform(random_));
    }
  }

  // Whether part p belongs to a pair since its start, of which the change alone is kept exact.
  bool has_start(size_t p) const {
    if (!std::is_same_v<T, bf16>) return false;
    const auto is_start = [&](size_t q) {
      return q < case_.parts.size() && case_.parts[q].change >= 0;
    };
    return is_start(p) || is_start(p + 1);
  }
  // The share of a magnitude that factors in single bf16 (their halves left out) may leave in it,
  // in units of check_sum's.
  static constexpr double kRoundedShare = 0.25 + 0x1p-9;
  double rounded(size_t p) const { return has_start(p) ? kRoundedShare : 0; }
  // Whether 2^-9 of what part p adds may be lost.
  bool is_change(size_t p) const {
    return std::is_same_v<T, bf16> && case_.parts[p].is_change && !has_start(p);
  }

  double change_of_y(size_t linear, int64_t n, int64_t o) {
    double magnitude = 0;
    for_parts(linear, [&](size_t p, int64_t rank, double scale) {
      for (int64_t r = 0; is_change(p) && r < rank; ++r) {
        magnitude += std::abs(scale * b_[p][o * rank + r]) * u(p, n, r).magnitude;
      }
    });
    for (size_t p = 1; p < a_.size(); ++p) {
      const Part& part = case_.parts[p];
      if (static_cast<size_t>(part.linear) != linear || part.change < 0 || !has_start(p)) continue;
      for (int64_t r = 0; r < part.rank; ++r) {
        const int64_t at = o * part.rank + r;
        Sum moved;
        for (int64_t k = 0; k < case_.in; ++k) {
          const int64_t i = r * case_.in + k;
          moved.add(adapter_x()[n * case_.in + k], a_[p - 1][i] - a_[p][i]);
        }
        magnitude +=
            std::abs(part.scale) * (u(p - 1, n, r).magnitude * std::abs(b_[p - 1][at] - b_[p][at]) +
                                    moved.magnitude * std::abs(b_[p][at]));
      }
    }
    return magnitude;
  }
  double change_of_dx(int64_t n, int64_t k) {
    double magnitude = 0;
    for (size_t p = 0; p < a_.size(); ++p) {
      for (int64_t r = 0; is_change(p) && r < case_.parts[p].rank; ++r) {
        magnitude += std::abs(a_[p][r * case_.in + k]) * du(p, n, r).magnitude;
      }
    }
    for (size_t p = 1; p < a_.size(); ++p) {
      const Part& part = case_.parts[p];
      if (part.change < 0 || !has_start(p)) continue;
      const int64_t outs = case_.outs[part.linear];
      for (int64_t r = 0; r < part.rank; ++r) {
        const int64_t at = r * case_.in + k;
        Sum moved;
        for (int64_t o = 0; o < outs; ++o) {
          const int64_t i = o * part.rank + r;
          moved.add(dy_[part.linear][n * outs + o], part.scale * (b_[p - 1][i] - b_[p][i]));
        }
        magnitude += du(p - 1, n, r).magnitude * std::abs(a_[p - 1][at] - a_[p][at]) +
                     moved.magnitude * std::abs(a_[p][at]);
      }
    }
    return magnitude;
  }

  const Array<T>& adapter_x() const { return case_.adapter_input ? xa_ : x_; }
  bool has_change(size_t linear) const { return case_.changed && linear != 1; }

  Sum u(size_t p, int64_t n, int64_t r) {
    Sum sum;
    for (int64_t k = 0; k < case_.in; ++k) {
      sum.add(adapter_x()[n * case_.in + k], a_[p][r * case_.in + k]);
    }
    return sum;
  }
  Sum du(size_t p, int64_t n, int64_t r) {
    const Part& part = case_.parts[p];
    const int64_t outs = case_.outs[part.linear];
    Sum sum;
    for (int64_t o = 0; o < outs; ++o) {
      sum.add(dy_[part.linear][n * outs + o], part.scale * b_[p][o * part.rank + r]);
    }
    return sum;
  }

  void check_part(size_t p) {
    const Part& part = case_.parts[p];
    if (part.change >= 0) return;
    const int64_t outs = case_.outs[part.linear];
    const double share = rounded(p) > 0 || is_change(p) ? kRoundedShare : 0;
    for (int64_t i = 0; i < da_[p].size(); ++i) {
      Sum sum;
      for (int64_t n = 0; n < case_.rows; ++n) {
        sum.add(du(p, n, i / case_.in), adapter_x()[n * case_.in + i % case_.in]);
      }
      check_sum<T>(da_[p][i], sum, 0, "da", i, share * sum.magnitude);
    }
    for (int64_t i = 0; i < db_[p].size(); ++i) {
      Sum sum;
      for (int64_t n = 0; n < case_.rows; ++n) {
        sum.add(u(p, n, i % part.rank), part.scale * dy_[part.linear][n * outs + i / part.rank]);
      }
      check_sum<T>(db_[p][i], sum, 0, "db", i, share * sum.magnitude);
    }
  }

  void make_views(std::vector<Array<T>>& y) {
    views_.clear(), linears_.clear(), parts_.assign(w_.size(), {});
    views_.reserve(256);
    const auto keep = [&](const View& view) { return &views_.emplace_back(view); };
    for (size_t p = 0; p < a_.size(); ++p) {
      const Part& part = case_.parts[p];
      std::vector<LowRankOperands>& own = parts_[static_cast<size_t>(part.linear)];
      const View *a = keep(a_[p].view()), *b = keep(b_[p].view());
      if (part.change >= 0) {
        own.back().start_a = a, own.back().start_b = b;
        own.back().form = BALORA_LOW_RANK_SINCE_START;
        continue;
      }
      own.push_back({.a = a,
                     .b = b,
                     .u = keep(u_[p].view()),
                     .da = keep(da_[p].view()),
                     .db = keep(db_[p].view()),
                     .scale = part.scale,
                     .form = part.is_change ? BALORA_LOW_RANK_CHANGE : BALORA_LOW_RANK_EXACT});
    }
    for (size_t l = 0; l < w_.size(); ++l) {
      View weight = w_[l].view();
      weight.slots = case_.frozen ? slots_[l].data() : nullptr;
      linears_.push_back({.weight = {.dense = keep(weight)},
                          .weight_change = has_change(l) ? keep(weight_change_[l].view()) : nullptr,
                          .bias = case_.bias ? keep(bias_[l].view()) : nullptr,
                          .output_scale = case_.scaled ? keep(scale_[l].view()) : nullptr,
                          .unscaled = case_.scaled ? keep(unscaled_[l].view()) : nullptr,
                          .y = keep(y[l].view()),
                          .parts = parts_[l].data(),
                          .part_count = count(parts_[l])});
    }
  }

  Case case_;
  TestContext ctx_;
  std::mt19937 random_{7};
  Array<T> x_, xa_;
  std::vector<Array<T>> w_, weight_change_, bias_, dy_, y_, unscaled_;
  std::vector<Array<A>> a_, b_, u_, da_, db_, scale_;
  std::vector<std::array<balora_slot, BALORA_SLOTS>> slots_;
  std::vector<View> views_;
  std::vector<LinearOperands> linears_;
  std::vector<std::vector<LowRankOperands>> parts_;  // of each linear
};

template <typename T>
void check_case(const Case& c) {
  CAPTURE(c.rows);
  CAPTURE(c.in);
  Fixture<T> fixture(c);
  for (int pass = 0; pass < 2; ++pass) {  // the second pass finds the weights packed
    fixture.forward();
    fixture.backward(pass == 0);
  }
}

template <typename T>
void check_all() {
  const Case cases[] = {
      {1, 1, {1}, {{0, 1, 1.0}}},
      {33, 31, {48}, {}},
      {1, 64, {33}, {{0, 4, 2.0}}},
      {67, 96, {64, 31, 33}, {{0, 16, 2.0}, {1, 3, 0.5}, {2, 16, 2.0}}},
      {130, 40, {65}, {{0, 48, 0.25}}},                          // R > in
      {70, 64, {32}, {{0, 8, 1.0}, {0, 8, -1.0}}, true, false},  // parts of opposite scale
      {70, 33, {31, 17}, {{1, 5, 3.0}}, false, true, true},
      {64, 32, {32}, {{0, 2, 1.0}}, true, false, true},
      {33, 31, {48}, {}, true, true, false, true},
      {67, 96, {64, 33}, {{0, 16, 2.0}, {0, 16, -2.0, 0.01}, {1, 3, 0.5}}, true, true, true, true},
      {1, 33, {31}, {{0, 4, 2.0}}, false, false, false, true},
      {33, 31, {48}, {}, true, true, false, false, true},
      {1, 64, {33, 31}, {{0, 4, 2.0}}, false, false, false, true, true},
      {67, 96, {64, 31, 33}, {{0, 16, 2.0}, {1, 3, 0.5}}, true, true, true, true, true},
      // More than is widened at a time.
      {520, 4100, {9, 5}, {{0, 3, 2.0}, {1, 2, 0.5}}, true, true, false, false, true},
      {520, 4100, {9, 5}, {{0, 3, 2.0}, {1, 2, 0.5}}, true, true, true, false, true},
  };
  for (const Case& c : cases) check_case<T>(c);
}

// Every extent at, below and above a tile's, so that every kind of padding occurs; ranks side by
// side of one linear and of several. The scratch that padding lies in
// starts as NaNs (TestContext).
template <typename T>
void check_padding() {
  for (const int64_t rank : {1, 2, 5, 15, 16, 17, 33}) {
    CAPTURE(rank);
    for (const int64_t rows : {1, 31, 33}) {
      check_case<T>({rows, 33, {31}, {{0, rank, 0.5}}});
      check_case<T>({rows, 31, {33}, {{0, rank, 0.5}, {0, 3, 2.0}, {0, 3, -2.0}}});
      check_case<T>({rows, 1, {1, 33}, {{0, 3, 0.5}, {1, rank, 2.0}, {1, 4, 1.0}}});
    }
    check_case<T>({123, 33, {31, 17}, {{0, rank, 0.5}, {1, 3, 2.0}}, true, true, true});
  }
}

// Pairs since their start, near and far from it, beside other parts.
template <typename T>
void check_pairs() {
  for (const double change : {0.0, 0x1p-10, 0x1p-5, 2.0}) {
    CAPTURE(change);
    for (const int64_t rank : {1, 5, 16, 17}) {
      CAPTURE(rank);
      const Part moved = {0, rank, 0.5}, start = {0, rank, -0.5, change};
      check_case<T>({33, 40, {65}, {moved, start}});
      check_case<T>({31, 33, {17, 31}, {{1, 3, 2.0}, moved, start, {0, rank, 1.0}}});
      check_case<T>({35, 31, {33}, {moved, start, moved, start}, true, false, true});
    }
  }
}

// Parts that are a change as they stand: alone, beside others and a pair, reading another input.
template <typename T>
void check_changes() {
  for (const int64_t rank : {1, 5, 16, 17, 33}) {
    CAPTURE(rank);
    const Part grown = {0, rank, 0.5, -1, true}, other = {1, rank, 2.0, -1, true};
    check_case<T>({33, 40, {65}, {grown}});
    check_case<T>({67, 96, {64, 31, 33}, {grown, other, {2, 3, 1.0}}, true});
    check_case<T>({31, 33, {17, 31}, {grown, {0, 4, 1.0}, {1, 3, 0.5}, {1, 3, -0.5, 0.01}}});
    check_case<T>({35, 31, {33}, {grown, grown}, true, false, true});
  }
}

// The step that a training makes first: before it the pair adds nothing at all.
void check_untouched_pair(int64_t rank) {
  Case plain = {67, 96, {65}, {}};
  Case paired = plain;
  paired.parts = {{0, rank, 1.5}, {0, rank, -1.5, 0.0}};
  Fixture<bf16> without(plain), with(paired);
  without.forward(), with.forward();
  CHECK(with.first_outputs() == without.first_outputs());
}

// DoRA: a change of the scale that is far below half a step of bf16 changes outputs, since it is
// not multiplied into rounded sums.
void check_small_scales() {
  const auto outputs = [](float scale) {
    TestContext ctx;
    std::mt19937 random(3);
    Array<bf16> x({64, 96}, random), w({33, 96}, random), y({64, 33});
    Array<float> factor({33});
    std::fill_n(factor.data(), 33, scale);
    const View vx = x.view(), vw = w.view(), vy = y.view(), vs = factor.view();
    const LinearOperands linear = {.weight = {.dense = &vw}, .output_scale = &vs, .y = &vy};
    REQUIRE(linear_forward_kernel(ctx, {.x = &vx, .linears = &linear, .count = 1}) == 0);
    std::vector<double> values;
    for (int64_t i = 0; i < y.size(); ++i) values.push_back(y[i]);
    return values;
  };
  const std::vector<double> before = outputs(1.0f), after = outputs(1.0005f);
  for (int64_t o = 0; o < 33; ++o) {
    bool moved = false;
    for (int64_t n = 0; n < 64; ++n) {
      const auto at = static_cast<size_t>(n * 33 + o);
      moved |= before[at] != after[at];
    }
    CHECK_MESSAGE(moved, "column ", o);
  }
}

}  // namespace

TEST_CASE("linear: an output scale joins before the rounding") {
  check_small_scales();
}
TEST_CASE("linear: a weight of an unknown format is refused") {
  TestContext ctx;
  std::mt19937 random(3);
  Array<float> x({2, 3}, random), w({4, 3}, random), y({2, 4}), norm({4});
  const View vx = x.view(), vw = w.view(), vy = y.view(), vn = norm.view();
  const balora_weight weight = {.dense = &vw, .format = 7};
  const LinearOperands linear = {.weight = weight, .y = &vy};
  const char* const message = "no dense weight, but one of format 7";
  CHECK_THROWS_WITH(linear_forward_kernel(ctx, {.x = &vx, .linears = &linear, .count = 1}),
                    message);
  CHECK_THROWS_WITH(linear_backward_kernel(ctx, {.dx = &vx, .linears = &linear, .count = 1}),
                    message);
  CHECK_THROWS_WITH(row_norm_kernel(ctx, {.weight = weight, .norm = &vn}), message);
}
TEST_CASE("linear: pairs, f32") {
  check_pairs<float>();
}
TEST_CASE("linear: pairs, bf16") {
  check_pairs<bf16>();
}
TEST_CASE("linear: an untouched pair leaves the base alone to the last bit") {
  for (const int64_t rank : {1, 8, 16, 24}) check_untouched_pair(rank);
}
TEST_CASE_TEMPLATE("linear: parts that are a change as they stand", T, float, bf16, double) {
  check_changes<T>();
}
TEST_CASE("linear: f32") {
  check_all<float>();
}
TEST_CASE("linear: bf16") {
  check_all<bf16>();
}
TEST_CASE("linear: padding is zero, not what scratch held before") {
  check_padding<bf16>();
}
TEST_CASE("linear: f16") {
  check_all<f16>();
}
TEST_CASE("linear: f64") {
  check_all<double>();
}

}  // namespace balora::test
