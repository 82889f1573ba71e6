// Attention, forward and backward, against its definition in double loops: every float type,
// grouped heads, packed and padded segments, causal and full, windows, soft-caps, odd sizes,
// operands taken in place from a fused product.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "kernels/cpu/products/tile_gemm.h"
#include "support/attention_definition.h"
#include "support/kernel_test.h"

namespace {

using namespace balora;
using namespace balora::test;

using Case = AttentionCase;

// The operands and results of a case, with a fused product whose rows are `pad` elements apart.
template <typename T>
class Attention {
 public:
  Attention(const Case& given, double range)
      : c(padded(given)),
        random(29),
        fused({c.cu.back(), c.width()}, random, range),
        dout({c.cu_queries().back(), c.heads, c.size}, random),
        out({dout.view().shape[0], c.heads, c.size}),
        dq({dout.view().shape[0], c.heads, c.size}),
        dk({c.cu.back(), c.kv_heads, c.size}),
        dv({c.cu.back(), c.kv_heads, c.size}),
        lse({dout.view().shape[0], c.heads}),
        sinks({static_cast<int64_t>(c.sinks.size())}, c.sinks),
        dsinks({static_cast<int64_t>(c.sinks.size())}) {}

  void run(int threads) {
    TestContext ctx(threads);
    const View q = slice(0, c.heads), k = slice(c.heads, c.kv_heads);
    const View v = slice(c.heads + c.kv_heads, c.kv_heads);
    Array<int32_t> cu = integers(c.cu), cu_queries = integers(c.cu_queries());
    Array<int32_t> lengths = integers(c.lengths);
    View vcu = cu.view(), vlen = lengths.view(), vout = out.view(), vlse = lse.view();
    View vg = dout.view(), vdq = dq.view(), vdk = dk.view(), vdv = dv.view();
    View vqueries = cu_queries.view();
    const View* len = c.lengths.empty() ? nullptr : &vlen;
    const View* queries = c.skips.empty() ? nullptr : &vqueries;
    View vsinks = sinks.view(), vdsinks = dsinks.view();
    const bool has_sinks = !c.sinks.empty();
    REQUIRE(attention_forward_kernel(ctx, {.q = &q,
                                           .k = &k,
                                           .v = &v,
                                           .cu_seqlens = &vcu,
                                           .cu_queries = queries,
                                           .lengths = len,
                                           .sinks = has_sinks ? &vsinks : nullptr,
                                           .out = &vout,
                                           .lse = &vlse,
                                           .scale = c.scale(),
                                           .softcap = c.softcap,
                                           .window = c.window,
                                           .causal = c.causal}) == 0);
    REQUIRE(attention_backward_kernel(ctx, {.dout = &vg,
                                            .q = &q,
                                            .k = &k,
                                            .v = &v,
                                            .cu_seqlens = &vcu,
                                            .cu_queries = queries,
                                            .lengths = len,
                                            .sinks = has_sinks ? &vsinks : nullptr,
                                            .out = &vout,
                                            .lse = &vlse,
                                            .dq = &vdq,
                                            .dk = &vdk,
                                            .dv = &vdv,
                                            .dsinks = has_sinks ? &vdsinks : nullptr,
                                            .scale = c.scale(),
                                            .softcap = c.softcap,
                                            .window = c.window,
                                            .causal = c.causal}) == 0);
  }

  AttentionResults definition(Unseen unseen = Unseen::kLeftOut) const {
    const std::vector<double> in = fused.values(), gradient = dout.values();
    return AttentionDefinition(c, in, gradient, unseen).results();
  }

  // The row of a head: those of q, k and v lie beside each other.
  T* at(int64_t row, int64_t head) { return fused.data() + row * c.width() + head * c.size; }

  const Case c;
  std::mt19937 random;
  Array<T> fused, dout, out, dq, dk, dv;
  Array<Acc<T>> lse, sinks, dsinks;

 private:
  static Case padded(Case given) {
    given.pad = 3;
    return given;
  }
  static Array<int32_t> integers(const std::vector<int32_t>& list) {
    return {{static_cast<int64_t>(list.size())}, std::vector<double>(list.begin(), list.end())};
  }
  View slice(int64_t first_head, int64_t heads) {
    View view = dq.view();
    view.data = fused.data() + first_head * c.size;
    if (first_head > 0) view.shape[0] = c.cu.back();
    view.shape[1] = heads;
    view.stride[0] = c.width();
    return view;
  }
};

template <typename T>
constexpr double kRounding = std::is_same_v<T, double>  ? 1e-13
                             : std::is_same_v<T, float> ? 3e-6
                                                        : 4 * epsilon_of<T>();

// Operands beyond [-2, 2] have larger errors: dq is a product of two of them, which counts in bf16
// and f16; in f32 and f64 the scores do, whose roundings grow with the square of the range before
// they are multiplied by v.
template <typename T>
void check_attention(const Case& given, int threads = 2, double range = 2) {
  CAPTURE(given.size);
  CAPTURE(given.cu.back());
  CAPTURE(given.causal);
  CAPTURE(given.window);
  CAPTURE(given.softcap);
  Attention<T> a(given, range);
  a.run(threads);
  const AttentionResults want = a.definition();
  // bf16 rounds p and ds before their products, and the backward reads a rounded out.
  const double growth = std::pow(range / 2, sizeof(T) == 2 ? 2 : 3);
  const double tolerance = growth * kRounding<T>;
  check_close(a.out, want.out, tolerance);
  check_close(a.lse, want.lse, std::is_same_v<T, double> ? 1e-13 : 3e-6);
  const double group = std::sqrt(static_cast<double>(a.c.group()));
  check_close(a.dq, want.dq, 2 * tolerance);
  check_close(a.dk, want.dk, 3 * group * tolerance);
  check_close(a.dv, want.dv, 3 * group * tolerance);
  check_close(a.dsinks, want.dsinks, std::sqrt(static_cast<double>(a.c.cu.back())) * tolerance);
}

std::vector<Case> cases() {
  return {
      {{0, 1}, {}, 1, 1, 1},
      {{0, 31}, {}, 2, 1, 16},
      {{0, 33}, {}, 3, 3, 33},
      {{0, 123}, {}, 6, 2, 64},
      {{0, 64, 128}, {}, 2, 2, 64},
      {{0, 1, 34, 34, 200}, {}, 3, 1, 31},
      {{0, 150}, {}, 2, 1, 128},
      {{0, 33, 123}, {}, 4, 2, 8, false},
      {{0, 200}, {}, 3, 1, 64, true, 1},
      {{0, 200}, {}, 3, 1, 64, true, 33},
      {{0, 200}, {}, 2, 1, 24, true, 130},
      {{0, 200}, {}, 2, 2, 40, false, 70},
      {{0, 70, 141}, {}, 4, 2, 32, true, 0, 5.0},
      {{0, 129}, {}, 2, 1, 16, true, 20, 2.0},
      {{0, 70, 140, 210}, {33, 70, 1}, 3, 1, 64},
      {{0, 70, 140, 210}, {65, 0, 64}, 2, 2, 48, false},
      {{0, 70, 140, 280}, {}, 4, 2, 64, true, 0, 0, {0, 24, 128}},
      {{0, 33, 66, 266}, {}, 2, 1, 33, true, 0, 3.0, {0, 33, 70}},
      {{0, 200, 400}, {}, 3, 1, 16, true, 50, 0, {0, 150}},
      {{0, 90, 180}, {}, 2, 2, 24, false, 40, 0, {65, 3}},
      {{0, 200}, {}, 3, 1, 16, false, 17, 0, {3}},
      {{0, 200}, {}, 2, 1, 64, false, 33, 0, {3}},
      {{0, 200}, {}, 2, 1, 64, false, 49, 0, {67}},
      {{0, 90, 180, 270}, {80, 20, 0}, 2, 1, 40, true, 0, 0, {0, 20, 7}},
      {{0, 90, 180}, {30, 90}, 2, 1, 16, false, 0, 0, {40, 64}},
      {{0, 256}, {}, 2, 1, 64, false},
      {{0, 320}, {}, 2, 1, 192},
      {{0, 320}, {}, 3, 1, 128, true, 150},
      {{0, 150}, {}, 6, 1, 40},
      {{0, 90, 200}, {}, 10, 2, 24, true, 40, 0, {65, 3}},
      {{0, 140}, {}, 6, 1, 80, true, 0, 4.0},
      {{0, 70, 150}, {}, 4, 2, 512},
      {{0, 130}, {}, 2, 1, 320, true, 40, 5.0},
      {{0, 100}, {}, 2, 2, 257, false, 0, 0, {30}},
  };
}

TEST_CASE_TEMPLATE("attention equals its definition", T, float, bf16, f16, double) {
  for (const Case& c : cases()) check_attention<T>(c);
}

std::vector<Case> cases_with_sinks() {
  return {
      {{0, 1}, {}, 1, 1, 1},
      {{0, 123}, {}, 6, 2, 33},
      {{0, 1, 34, 34, 200}, {}, 3, 1, 64},
      {{0, 200}, {}, 4, 1, 40, true, 70, 5.0},
      {{0, 200}, {}, 2, 2, 31, false, 33, 2.0},
      {{0, 70, 140, 210}, {33, 70, 0}, 10, 2, 48},
      {{0, 200, 400}, {}, 3, 1, 16, true, 50, 0, {0, 150}},
      {{0, 100}, {}, 2, 1, 320, true, 20, 3.0},
  };
}

TEST_CASE_TEMPLATE("attention with sinks equals its definition", T, float, bf16, f16, double) {
  for (Case c : cases_with_sinks()) {
    // Far below the scores, among them, above them, and none.
    const std::vector<double> sinks = {-30, 0.5, 2.25, 12, -INFINITY};
    for (int64_t h = 0; h < c.heads; ++h) c.sinks.push_back(sinks[static_cast<size_t>(h) % 5]);
    check_attention<T>(c);
    std::rotate(c.sinks.begin(), c.sinks.begin() + 1, c.sinks.end());
    c.factor = -0.3;
    check_attention<T>(c);
  }
}

TEST_CASE_TEMPLATE("gradients of sinks have the same bits for any number of threads", T, float,
                   bf16, f16, double) {
  Case c{{0, 300, 310, 555}, {}, 6, 2, 16, true, 40, 5.0};
  c.sinks = {-1, 0, 0.5, 1, 2, 4};
  Attention<T> one(c, 2), other(c, 2);
  one.run(1);
  for (const int threads : {2, 3, 7}) {
    other.run(threads);
    CHECK(one.out.values() == other.out.values());
    CHECK(one.dsinks.values() == other.dsinks.values());
  }
}

// A negative scale prefers the keys that are least like the query; with 0 all count alike.
TEST_CASE_TEMPLATE("attention equals its definition where the scale is not positive", T, float,
                   bf16, f16, double) {
  for (const double factor : {-1.0, -0.3, 0.0, 1e-46}) {  // the last is 0 in f32
    for (Case c : {Case{{0, 140}, {}, 3, 1, 64}, Case{{0, 70, 200}, {}, 2, 2, 40, false, 60},
                   Case{{0, 129}, {}, 2, 1, 16, true, 20, 2.0},
                   Case{{0, 70, 280}, {}, 4, 2, 64, true, 0, 0, {0, 128}}}) {
      c.factor = factor;
      CAPTURE(factor);
      check_attention<T>(c);
    }
  }
}

// From tile to tile by more and by less than what a running maximum may lag behind.
TEST_CASE_TEMPLATE("attention is right where maxima rise", T, float, bf16, f16, double) {
  check_attention<T>({{0, 300}, {}, 6, 2, 64}, 2, 6);
  check_attention<T>({{0, 200}, {}, 3, 1, 40, false, 70}, 2, 6);
}

// Scores that rise and fall by `steps` from one tile of keys to the next, or from one `width` of
// keys, with their noise.
template <typename T>
void check_steps(const Case& given, const std::vector<double>& steps, int64_t width = 64) {
  CAPTURE(given.size);
  CAPTURE(given.causal);
  CAPTURE(steps.back());
  CAPTURE(width);
  Attention<T> a(given, 1);
  const double towards = 8, root = std::sqrt(static_cast<double>(a.c.size));
  double largest = 1;
  for (int64_t row = 0; row < a.c.cu.back(); ++row) {
    const double step = steps[static_cast<size_t>(row / width) % steps.size()];
    largest = std::max(largest, std::abs(step));
    for (int64_t head = 0; head < a.c.heads + a.c.kv_heads; ++head) {
      const double shift = head < a.c.heads ? towards : step / (towards * root);
      T* const values = a.at(row, head);
      for (int64_t d = 0; d < a.c.size; ++d) {
        values[d] = from_double<T>(to_double(values[d]) + shift);
      }
    }
  }
  a.run(2);
  const AttentionResults want = a.definition();
  // A probability is as exact as its score, whose roundings are relative; those of p, ds and out do
  // not grow, but dq and dk are sums of up to `towards` or `largest / (towards * root)` times them.
  const double scores = (std::is_same_v<T, double> ? 1e-15 : 6e-7) * largest;
  const double tolerance = kRounding<T> + scores;
  const double factor = std::max(towards, largest / (towards * root));
  check_close(a.out, want.out, tolerance);
  check_close(a.lse, want.lse, std::is_same_v<T, double> ? 1e-13 : 3e-6);
  check_close(a.dq, want.dq, 2 * factor * tolerance);
  check_close(a.dk, want.dk, 6 * factor * tolerance);
  check_close(a.dv, want.dv, 6 * tolerance);
}

TEST_CASE_TEMPLATE("attention is right where maxima jump", T, float, bf16, f16, double) {
  const std::vector<std::vector<double>> table = {
      {0, 7, 14, 21, 28},            // each less than what a running maximum may lag behind
      {0, 7, 107, 100, 207},         // by what overflows as an exponential, if it is a lag
      {0, 7, 307, 300, 308},         // a jump after a lag
      {0, 300, 700, 1100, 1500},     // each first tile vanishes
      {900, 0, -900, 895, 902},      // only the first and the last count
      {-1200, -800, -400, -401, 0},  // from far below zero
      {0, 3e4, -6e4, 9e4},
      {28, 21, 14, 7, 0},  // the same from the nearest keys to the farthest
      {207, 100, 107, 7, 0},
      {1500, 1100, 700, 300, 0},
      {600, 400, 200, 190, 185},  // where log-sum-exps are large, but not too large for base 2
  };
  for (const std::vector<double>& steps : table) {
    check_steps<T>({{0, 299}, {}, 3, 1, 64}, steps);
    check_steps<T>({{0, 70, 330}, {}, 2, 2, 40, false}, steps);
    check_steps<T>({{0, 330}, {301}, 3, 1, 33, true, 90}, steps);
    // Within the tile by the queries themselves, too.
    check_steps<T>({{0, 299}, {}, 3, 1, 64}, steps, 5);
    check_steps<T>({{0, 140}, {}, 2, 1, 128}, steps, 21);
  }
}

// One key outdoes all others of a query, by scores so large that one unit of their last digit is an
// exponent of its own: probabilities are 1 and 0, and what is left of ds is rounding.
template <typename T>
void check_large(const Case& given, double range) {
  CAPTURE(given.size);
  CAPTURE(range);
  Attention<T> a(given, range);
  a.run(2);
  const AttentionResults want = a.definition();
  const double size = static_cast<double>(a.c.size);
  const auto check = [](const auto& got, const std::vector<double>& wanted, double tolerance) {
    double worst = 0;
    for (size_t i = 0; i < wanted.size(); ++i) {
      const double error = std::abs(got[static_cast<int64_t>(i)] - wanted[i]);
      worst = std::isnan(error) ? error : std::max(worst, error);
      if (std::isnan(worst)) break;
    }
    CHECK(worst <= tolerance);
  };
  check(a.out, want.out, range * kRounding<T>);
  check(a.lse, want.lse, range * range * size * (std::is_same_v<T, double> ? 1e-13 : 3e-6));
  check(a.dv, want.dv, size * range * kRounding<T>);
  const double slopes = range * range * size * (std::is_same_v<T, double> ? 1e-15 : 1e-6);
  check(a.dq, want.dq, size * range * slopes);
  check(a.dk, want.dk, size * range * slopes);
}

TEST_CASE_TEMPLATE("attention is right where scores are huge", T, float, bf16, f16, double) {
  for (const double range : {4096.0, 1e6, 1e9}) {
    if (std::is_same_v<T, f16> && range > 65504) continue;
    check_large<T>({{0, 140}, {}, 3, 1, 64}, range);
    check_large<T>({{0, 33, 150}, {}, 2, 2, 40, false}, range);
    check_large<T>({{0, 150}, {}, 2, 1, 33, true, 70}, range);
  }
}

// Rows [first, last) of an array and as many of another from `other_first` on.
template <typename T>
void check_same_rows(const std::string& what, Array<T>& array, int64_t first, int64_t last,
                     Array<T>& other, int64_t other_first) {
  const int64_t width = array.size() / array.view().shape[0];
  const T* const from = array.data() + first * width;
  const auto bytes = static_cast<size_t>((last - first) * width) * sizeof(T);
  CAPTURE(what);
  CHECK(std::memcmp(from, other.data() + other_first * width, bytes) == 0);
}

// Rows of a segment of 256, of its first 230 rows alone, and of those as queries from 200 on.
template <typename T>
void check_causal_rows(double range, int64_t window, double later) {
  constexpr int64_t kRows = 256, kKept = 230, kSkip = 200;
  CAPTURE(range);
  CAPTURE(window);
  CAPTURE(later);
  const Case whole{{0, kRows}, {}, 3, 1, 64, true, window};
  Case shorter = whole, last = whole;
  shorter.lengths = {kKept}, last.skips = {kSkip};
  Attention<T> a(whole, range), b(shorter, range), c(last, range);
  for (int64_t row = kKept; row < kRows; ++row) {
    std::fill_n(a.at(row, 0), 3 * 64, from_double<T>(later));
  }
  for (int64_t row = kSkip; row < kRows; ++row) {
    std::copy_n(b.at(row, 0), 3 * 64, c.at(row - kSkip, 0));
  }
  a.run(1), b.run(1), c.run(1);
  check_same_rows("out", a.out, 0, kKept, b.out, 0);
  check_same_rows("lse", a.lse, 0, kKept, b.lse, 0);
  check_same_rows("dq", a.dq, 0, kKept, b.dq, 0);
  check_same_rows("out of some queries", a.out, kSkip, kKept, c.out, 0);
  check_same_rows("lse of some queries", a.lse, kSkip, kKept, c.lse, 0);
}

TEST_CASE_TEMPLATE("a causal row has the same bits whatever follows it", T, float, bf16, f16,
                   double) {
  for (const double range : {0.5, 2.0, 8.0, 30.0, 200.0}) {
    for (const int64_t window : {0, 150}) {
      // In the same tile, queries whose scores need more care, and not.
      for (const double later : {1.0, 1e4}) check_causal_rows<T>(range, window, later);
    }
  }
}

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

enum class Operand { kQ, kK, kV, kDout };

// NaN exactly where the definition has NaN, except that a key or a query that is not finite may be
// multiplied by the zeros of those that it does not see, as wherever scores are masked by
// -infinity; infinities where it has them; else as near as `tolerance`.
template <typename T>
void check_special(const char* what, const Array<T>& actual, const std::vector<double>& want,
                   const std::vector<double>& times_zero, double tolerance) {
  const std::string result = what;
  CAPTURE(result);
  REQUIRE(actual.size() == static_cast<int64_t>(want.size()));
  for (size_t i = 0; i < want.size(); ++i) {
    const double got = actual[static_cast<int64_t>(i)];
    const bool right = std::isnan(want[i]) ? std::isnan(got)
                       : std::isnan(got)   ? std::isnan(times_zero[i])
                       : std::isinf(want[i])
                           ? got == want[i]
                           : std::abs(got - want[i]) <= tolerance * (1 + std::abs(want[i]));
    if (right) continue;
    CHECK_MESSAGE(right, "index ", i, ": got ", got, ", expected ", want[i]);
    return;
  }
}

template <typename T>
void check_value(const Case& given, Operand operand, int64_t row, double value) {
  CAPTURE(given.size);
  CAPTURE(given.causal);
  CAPTURE(given.window);
  CAPTURE(given.softcap);
  CAPTURE(static_cast<int>(operand));
  CAPTURE(value);
  Attention<T> a(given, 1);
  const int64_t column = a.c.size / 2;
  if (operand == Operand::kDout) {
    a.dout.data()[(row * a.c.heads + a.c.heads - 1) * a.c.size + column] = from_double<T>(value);
  } else {
    const int64_t head = operand == Operand::kQ   ? a.c.heads - 1
                         : operand == Operand::kK ? a.c.heads
                                                  : a.c.heads + a.c.kv_heads;
    a.at(row, head)[column] = from_double<T>(value);
  }
  a.run(2);
  const AttentionResults want = a.definition(), zeros = a.definition(Unseen::kTimesZero);
  const double tolerance = 6 * kRounding<T>;
  check_special("out", a.out, want.out, zeros.out, tolerance);
  check_special("lse", a.lse, want.lse, zeros.lse, tolerance);
  check_special("dq", a.dq, want.dq, zeros.dq, tolerance);
  check_special("dk", a.dk, want.dk, zeros.dk, tolerance);
  check_special("dv", a.dv, want.dv, zeros.dv, tolerance);
}

TEST_CASE_TEMPLATE("attention passes on what is not finite", T, float, bf16, f16, double) {
  const std::vector<Case> table = {
      {{0, 150}, {}, 3, 1, 64},
      {{0, 40, 171}, {}, 2, 2, 40, false},
      {{0, 200}, {131}, 2, 1, 33, true, 70},
      {{0, 150}, {}, 2, 1, 16, true, 0, 5.0},
  };
  for (const Case& c : table) {
    for (const Operand operand : {Operand::kQ, Operand::kK, Operand::kV, Operand::kDout}) {
      for (const double value : {kNan, kInfinity, -kInfinity}) {
        for (const int64_t row : {1, 63, 64, 100}) check_value<T>(c, operand, row, value);
      }
    }
  }
}

TEST_CASE_TEMPLATE("attention does not read padding rows", T, float, bf16, f16, double) {
  Attention<T> a({{0, 70, 140, 280}, {33, 0, 65}, 3, 1, 40}, 1);
  const AttentionResults want = a.definition();
  for (const auto& [first, last] : {std::pair{33, 70}, {70, 140}, {205, 280}}) {
    std::fill(a.at(first, 0), a.at(last, 0), from_double<T>(kNan));
    const int64_t row = a.c.heads * a.c.size;
    std::fill(a.dout.data() + first * row, a.dout.data() + last * row, from_double<T>(kNan));
  }
  a.run(2);
  check_close(a.out, want.out, kRounding<T>);
  check_close(a.lse, want.lse, std::is_same_v<T, double> ? 1e-13 : 3e-6);
  check_close(a.dq, want.dq, 2 * kRounding<T>);
  check_close(a.dk, want.dk, 6 * kRounding<T>);
  check_close(a.dv, want.dv, 6 * kRounding<T>);
}

TEST_CASE_TEMPLATE("attention whose scores are all -infinity is NaN", T, float, bf16, f16, double) {
  Attention<T> a({{0, 70}, {}, 1, 1, 16}, 1);
  for (int64_t row = 0; row < 70; ++row) {
    a.at(row, 0)[3] = from_double<T>(row == 66 ? -kInfinity : 1);
    a.at(row, 1)[3] = from_double<T>(1);
  }
  a.run(1);
  const AttentionResults want = a.definition(), zeros = a.definition(Unseen::kTimesZero);
  CHECK(std::isnan(want.out[66 * 16]));
  check_special("out", a.out, want.out, zeros.out, kRounding<T>);
  check_special("lse", a.lse, want.lse, zeros.lse, kRounding<T>);
  check_special("dq", a.dq, want.dq, zeros.dq, 6 * kRounding<T>);
  check_special("dk", a.dk, want.dk, zeros.dk, 6 * kRounding<T>);
  check_special("dv", a.dv, want.dv, zeros.dv, 6 * kRounding<T>);
}

TEST_CASE("attention is right for any number of threads") {
  for (const int threads : {1, 3, 7}) {
    check_attention<float>({{0, 300, 310, 555}, {}, 6, 2, 16}, threads);
    check_attention<bf16>({{0, 300, 310, 555}, {}, 6, 2, 16}, threads);
    check_attention<bf16>({{0, 300, 310, 555}, {}, 6, 2, 16, true, 0, 0, {0, 4, 130}}, threads);
  }
}

TEST_CASE("attention refuses segments that do not cover its rows") {
  TestContext ctx;
  std::mt19937 random(1);
  Array<float> q({4, 1, 2}, random), out({4, 1, 2}), lse({4, 1});
  View vq = q.view(), vo = out.view(), vl = lse.view();
  const auto run = [&](std::vector<double> bounds, std::vector<double> lengths,
                       std::vector<double> queries = {}) {
    Array<int32_t> cu({static_cast<int64_t>(bounds.size())}, bounds);
    Array<int32_t> len({static_cast<int64_t>(lengths.size())}, lengths);
    Array<int32_t> own({static_cast<int64_t>(queries.size())}, queries);
    View vcu = cu.view(), vlen = len.view(), vown = own.view();
    return attention_forward_kernel(ctx, {.q = &vq,
                                          .k = &vq,
                                          .v = &vq,
                                          .cu_seqlens = &vcu,
                                          .cu_queries = queries.empty() ? nullptr : &vown,
                                          .lengths = lengths.empty() ? nullptr : &vlen,
                                          .out = &vo,
                                          .lse = &vl,
                                          .scale = 1,
                                          .softcap = 0,
                                          .window = 0,
                                          .causal = 1});
  };
  CHECK_THROWS_WITH_AS(run({0, 3}, {}), "cu_seqlens must rise from 0 to the 4 rows, got 0 to 3",
                       ArgumentError);
  CHECK_THROWS_WITH_AS(run({0, 5, 4}, {}), "cu_seqlens falls from 5 to 4 at index 2",
                       ArgumentError);
  CHECK_THROWS_WITH_AS(run({0, 4}, {5}), "length 5 of segment 0 is not within its 4 rows",
                       ArgumentError);
  CHECK_THROWS_WITH_AS(run({0, 4}, {}, {0, 3}),
                       "cu_queries must rise from 0 to the 4 rows of q, got 0 to 3", ArgumentError);
  CHECK_THROWS_WITH_AS(run({0, 1, 4}, {}, {0, 2, 4}), "segment 0 has 2 queries, but 1 rows",
                       ArgumentError);
}

template <typename E, typename A>
void check_tile_product(int64_t m, int64_t n, int64_t k) {
  std::mt19937 random(31);
  const auto aligned = []<typename X>(int64_t count) {
    return std::unique_ptr<X, decltype(&std::free)>(
        static_cast<X*>(std::aligned_alloc(64, static_cast<size_t>(count) * sizeof(X))),
        &std::free);
  };
  auto a = aligned.template operator()<E>(m * k), b = aligned.template operator()<E>(k * n);
  auto c = aligned.template operator()<A>(m * n);
  Array<E> plain_a({m, k}, random), plain_b({k, n}, random);
  std::copy(plain_a.data(), plain_a.data() + m * k, a.get());
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const int64_t at = std::is_same_v<E, bf16> ? (i / 2 * n + j) * 2 + i % 2 : i * n + j;
      b.get()[at] = plain_b.data()[i * n + j];
    }
  }
  const auto check = [&](bool accumulate) {
    double worst = 0;
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        double want = accumulate ? 0.5 : 0;
        for (int64_t l = 0; l < k; ++l) want += plain_a[i * k + l] * plain_b[l * n + j];
        worst = std::max(worst, std::abs(static_cast<double>(c.get()[i * n + j]) - want));
      }
    }
    CHECK(worst < (std::is_same_v<A, double> ? 1e-13 : 2e-5));
  };
  const TileScope scope;
  for (const bool accumulate : {true, false}) {
    std::fill(c.get(), c.get() + m * n, A(0.5));
    tile_gemm({m, n, k}, a.get(), k, b.get(), c.get(), n, accumulate);
    check(accumulate);
  }
  if constexpr (std::is_same_v<E, A>) {
    auto columns = aligned.template operator()<E>(k * m);
    for (int64_t l = 0; l < k; ++l) {
      for (int64_t i = 0; i < m; ++i) columns.get()[l * m + i] = plain_a.data()[i * k + l];
    }
    for (const bool accumulate : {true, false}) {
      std::fill(c.get(), c.get() + m * n, A(0.5));
      tile_gemm_columns({m, n, k}, columns.get(), m, b.get(), n, c.get(), n, accumulate);
      check(accumulate);
    }
  }
}

TEST_CASE("tile_gemm equals plain loops in f32, f64 and, where the CPU has it, bf16") {
  for (const int64_t m : {32, 64}) {
    for (const int64_t n : {32, 96}) {
      for (const int64_t k : {32, 128}) {
        check_tile_product<float, float>(m, n, k);
        check_tile_product<double, double>(m, n, k);
        if (tile_gemm_has_bf16()) check_tile_product<bf16, float>(m, n, k);
      }
    }
    // Half of a block's columns, alone and behind a whole one; a short depth.
    for (const int64_t n : {16, 48}) {
      check_tile_product<float, float>(m - 8, n, 40);
      check_tile_product<double, double>(m - 8, n, 40);
      if (n % tile_columns<bf16>() > 0 || !tile_gemm_has_bf16()) continue;
      check_tile_product<bf16, float>(m - tile_step<bf16>(), n, 5 * tile_step<bf16>());
    }
  }
}

}  // namespace
