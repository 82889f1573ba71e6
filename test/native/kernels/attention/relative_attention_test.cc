// Attention with relative positions, forward and backward, against its definition: every float type
// and combination of terms, other keys than queries, padding, causal, position tables whose rows
// are met anyhow and as models meet them.
#include <doctest/doctest.h>

#include <cstring>
#include <utility>

#include "support/kernel_test.h"
#include "support/relative_definition.h"

namespace {

using namespace balora;
using namespace balora::test;

using Case = RelativeCase;

template <typename T>
class RelativeAttention {
 public:
  explicit RelativeAttention(const Case& c)
      : c_(c),
        random(17),
        q({n(), c.heads, c.size}, random),
        k({m(), c.heads, c.size}, random),
        v({m(), c.heads, c.size}, random),
        dout({n(), c.heads, c.size}, random),
        bias({c.relative(), c.heads}, random),
        pk({c.positions, c.heads, c.size}, random),
        pq({c.positions, c.heads, c.size}, random),
        out({n(), c.heads, c.size}),
        dq({n(), c.heads, c.size}),
        dk({m(), c.heads, c.size}),
        dv({m(), c.heads, c.size}),
        dbias({c.relative(), c.heads}),
        dpk({c.positions, c.heads, c.size}),
        dpq({c.positions, c.heads, c.size}),
        lse({n(), c.heads}) {}

  void run(int threads) {
    TestContext ctx(threads);
    std::vector<int32_t> places;
    for (int64_t r = 0; c_.placed() && r < c_.relative(); ++r) places.push_back(c_.position(r));
    places.push_back(1 << 24);  // which no one may read
    Array<int32_t> at = integers(places), cu = integers(c_.cu), cu_keys = integers(c_.keys());
    Array<int32_t> lengths = integers(c_.lengths), key_lengths = integers(c_.key_lengths);
    View vq = q.view(), vk = k.view(), vv = v.view(), vcu = cu.view(), vkeys = cu_keys.view();
    View vlen = lengths.view(), vkey_len = key_lengths.view(), vat = at.view();
    --vat.shape[0];
    View vbias = bias.view(), vpk = pk.view(), vpq = pq.view(), vout = out.view();
    View vlse = lse.view(), vg = dout.view(), vdq = dq.view(), vdk = dk.view(), vdv = dv.view();
    View vdbias = dbias.view(), vdpk = dpk.view(), vdpq = dpq.view();
    const auto if_term = [&](int term, const View& view) {
      return c_.terms & term ? &view : nullptr;
    };
    const Relative r{.q = &vq,
                     .k = &vk,
                     .v = &vv,
                     .cu_queries = &vcu,
                     .cu_keys = &vkeys,
                     .query_lengths = c_.lengths.empty() ? nullptr : &vlen,
                     .key_lengths = c_.key_lengths.empty() ? nullptr : &vkey_len,
                     .bias = if_term(kBias, vbias),
                     .position_k = if_term(kPositionK, vpk),
                     .position_q = if_term(kPositionQ, vpq),
                     .index = if_term(kPositionK | kPositionQ, vat),
                     .scale = c_.scale,
                     .causal = c_.causal};
    const RelativeGradients g{.q = &vdq,
                              .k = &vdk,
                              .v = &vdv,
                              .bias = if_term(kBias, vdbias),
                              .position_k = if_term(kPositionK, vdpk),
                              .position_q = if_term(kPositionQ, vdpq)};
    REQUIRE(relative_attention_forward_kernel(ctx, {.r = &r, .out = &vout, .lse = &vlse}) == 0);
    REQUIRE(relative_attention_backward_kernel(
                ctx, {.dout = &vg, .r = &r, .out = &vout, .lse = &vlse, .gradients = &g}) == 0);
  }

  RelativeDefinition definition() const {
    const auto rows = [&](const Array<T>& array) {
      return HeadRows(array.values(), c_.heads, c_.size);
    };
    return RelativeDefinition(c_, rows(q), rows(k), rows(v), rows(pk), rows(pq), bias.values(),
                              rows(dout));
  }

 private:
  static Array<int32_t> integers(const std::vector<int32_t>& list) {
    return {{static_cast<int64_t>(list.size())}, std::vector<double>(list.begin(), list.end())};
  }
  int64_t n() const { return c_.cu.back(); }
  int64_t m() const { return c_.keys().back(); }

  const Case c_;

 public:
  std::mt19937 random;
  Array<T> q, k, v, dout, bias, pk, pq, out, dq, dk, dv, dbias, dpk, dpq;
  Array<Acc<T>> lse;
};

// |actual - expected| in units of the largest expected value, which the sums of many roundings of
// either sign grow with.
template <typename T>
void check_sums(const char* name, const Array<T>& actual, const std::vector<double>& expected,
                double tolerance) {
  CAPTURE(name);
  double largest = 1;
  for (const double value : expected) largest = std::max(largest, std::abs(value));
  check_close(actual, expected, tolerance * largest);
}

template <typename T>
void check_relative(const Case& c, int threads) {
  CAPTURE(c.size);
  CAPTURE(c.cu.back());
  CAPTURE(c.terms);
  CAPTURE(c.causal);
  RelativeAttention<T> a(c);
  a.run(threads);
  const RelativeDefinition want = a.definition();
  const double tolerance = std::is_same_v<T, double>  ? 1e-13
                           : std::is_same_v<T, float> ? 3e-6
                                                      : 2 * epsilon_of<T>();
  check_sums("out", a.out, want.out.at, tolerance);
  check_sums("lse", a.lse, want.lse, std::is_same_v<T, double> ? 1e-13 : 3e-6);
  check_sums("dq", a.dq, want.dq.at, tolerance);
  check_sums("dk", a.dk, want.dk.at, tolerance);
  check_sums("dv", a.dv, want.dv.at, tolerance);
  if (c.terms & kBias) check_sums("dbias", a.dbias, want.dbias, tolerance);
  if (c.terms & kPositionK) check_sums("dposition_k", a.dpk, want.dpk.at, tolerance);
  if (c.terms & kPositionQ) check_sums("dposition_q", a.dpq, want.dpq.at, tolerance);
}

std::vector<Case> cases() {
  constexpr int kPlaced = kPositionK | kPositionQ;
  constexpr PositionOrder kRising = PositionOrder::kRising, kFalling = PositionOrder::kFalling;
  return {
      {{0, 1}, {}, {}, {}, 1, 1, kAll, 1},
      {{0, 31}, {}, {}, {}, 2, 8},
      {{0, 33, 64}, {}, {}, {}, 3, 5, kBias},
      {{0, 123, 330}, {}, {}, {}, 3, 64, kBias, 0, true},
      {{0, 31}, {}, {}, {}, 2, 80, kPositionK, 7},
      {{0, 33}, {}, {}, {}, 1, 8, kPositionQ, 40},
      {{0, 70, 70, 101}, {}, {}, {}, 2, 6, kPlaced, 133},
      {{0, 33, 66, 99}, {}, {33, 1, 20}, {33, 1, 20}, 2, 4, kAll, 9},
      {{0, 5, 70}, {0, 33, 40}, {}, {}, 2, 8},
      {{0, 5, 9, 12}, {0, 8, 8, 15}, {3, 4, 3}, {8, 0, 2}, 2, 3, kBias},
      {{0, 70, 70, 101}, {}, {}, {}, 2, 33, kPlaced, 110, false, 0.3, kRising},
      {{0, 150, 240}, {}, {150, 33}, {150, 33}, 2, 64, kAll, 128, false, 0.1, kFalling},
      {{0, 17, 100}, {}, {}, {}, 1, 16, kPlaced, 128, true, 0.3, kFalling},
      {{0, 40, 48}, {0, 90, 200}, {}, {}, 1, 24, kPlaced, 256, false, 0.3, kRising},
      {{0, 40, 160}, {0, 90, 120}, {}, {}, 2, 8, kAll, 256, true, 0.3, kFalling},
      {{0, 0, 1, 66}, {0, 1, 2, 2}, {}, {}, 1, 8, kPlaced, 3},
      {{0, 5, 70}, {0, 65, 130}, {0, 65}, {65, 65}, 1, 8, kAll, 130, false, 0.3, kRising},
      {{0, 50}, {}, {}, {}, 2, 8, kPlaced, 1},
      {{0, 90}, {}, {}, {}, 2, 8, kPlaced, 64, false, 0.3, kRising, 4},
      {{0, 90}, {}, {}, {}, 2, 8, kPlaced, 64, false, 0.3, kFalling, 2},
      {{0, 4}, {}, {}, {}, 2, 8, kBias, 0, false, 0.3, kRising, 20, 4096},
      {{0, 4}, {}, {}, {}, 2, 8, kPlaced, 256, false, 0.3, kRising, 20, 4096},
  };
}

TEST_CASE_TEMPLATE("relative attention equals its definition", T, float, bf16, f16, double) {
  for (const Case& c : cases()) check_relative<T>(c, 2);
}

TEST_CASE_TEMPLATE("relative attention has the same bits with any number of threads", T, float,
                   bf16) {
  for (const Case& c : cases()) {
    RelativeAttention<T> one(c), three(c);
    one.run(1);
    three.run(3);
    for (const auto& [x, y] : {std::pair(&one.out, &three.out), std::pair(&one.dq, &three.dq),
                               std::pair(&one.dk, &three.dk), std::pair(&one.dv, &three.dv),
                               std::pair(&one.dbias, &three.dbias), std::pair(&one.dpk, &three.dpk),
                               std::pair(&one.dpq, &three.dpq)}) {
      CHECK(std::memcmp(x->data(), y->data(), static_cast<size_t>(x->size()) * sizeof(T)) == 0);
    }
  }
}

// Rows of the tables that only hidden keys meet share vectors with rows that others meet.
TEST_CASE_TEMPLATE("relative attention gives rows of hidden keys no gradient", T, float, bf16, f16,
                   double) {
  for (const PositionOrder order : {PositionOrder::kRising, PositionOrder::kFalling}) {
    const Case c{{0, 150, 240},           {},  {},   {},  1,     16,
                 kPositionK | kPositionQ, 128, true, 0.3, order, 4};
    RelativeAttention<T> a(c);
    a.run(2);
    std::vector<bool> seen(static_cast<size_t>(c.positions));
    for (int64_t r = 0; r < c.longest(); ++r) seen[static_cast<size_t>(c.position(r))] = true;
    for (int64_t i = 0; i < a.dpk.size(); ++i) {
      if (seen[static_cast<size_t>(i / c.size)]) continue;
      REQUIRE(a.dpk[i] == 0);
      REQUIRE(a.dpq[i] == 0);
    }
  }
}

}  // namespace
