// Attention, forward and backward, against its definition in double loops: every float type,
// grouped heads, packed and padded segments, causal and full, windows, soft-caps, odd sizes,
// operands taken in place from a fused product.
#include <doctest/doctest.h>

#include "kernels/cpu/products/tile_gemm.h"
#include "support/attention_definition.h"
#include "support/kernel_test.h"

namespace {

using namespace balora;
using namespace balora::test;

using Case = AttentionCase;

// Operands beyond [-2, 2] have larger errors: dq is a product of two of them, which counts in bf16
// and f16; in f32 and f64 the scores do, whose roundings grow with the square of the range before
// they are multiplied by v.
template <typename T>
void check_attention(const Case& given, int threads = 2, double range = 2) {
  Case c = given;
  c.pad = 3;
  CAPTURE(c.size);
  CAPTURE(c.cu.back());
  CAPTURE(c.causal);
  CAPTURE(c.window);
  CAPTURE(c.softcap);
  std::mt19937 random(29);
  TestContext ctx(threads);
  const int64_t n = c.cu.back(), width = c.width();
  const std::vector<int32_t> query_bounds = c.cu_queries();
  const int64_t m = query_bounds.back();
  Array<T> fused({n, width}, random, range), dout({m, c.heads, c.size}, random);
  Array<T> out({m, c.heads, c.size}), dq({m, c.heads, c.size});
  Array<T> dk({n, c.kv_heads, c.size}), dv({n, c.kv_heads, c.size});
  Array<Acc<T>> lse({m, c.heads});
  Array<int32_t> cu_queries({static_cast<int64_t>(query_bounds.size())},
                            std::vector<double>(query_bounds.begin(), query_bounds.end()));
  Array<int32_t> cu({static_cast<int64_t>(c.cu.size())},
                    std::vector<double>(c.cu.begin(), c.cu.end()));
  Array<int32_t> lengths({static_cast<int64_t>(c.lengths.size())},
                         std::vector<double>(c.lengths.begin(), c.lengths.end()));
  const auto slice = [&](int64_t first_head, int64_t heads) {
    View view = dq.view();
    view.data = fused.data() + first_head * c.size;
    view.shape[0] = heads == c.heads && first_head == 0 ? m : n;
    view.shape[1] = heads;
    view.stride[0] = width;
    return view;
  };
  View q = slice(0, c.heads), k = slice(c.heads, c.kv_heads);
  View v = slice(c.heads + c.kv_heads, c.kv_heads);
  View vcu = cu.view(), vlen = lengths.view(), vout = out.view(), vlse = lse.view();
  View vg = dout.view(), vdq = dq.view(), vdk = dk.view(), vdv = dv.view();
  View vqueries = cu_queries.view();
  const View* len = c.lengths.empty() ? nullptr : &vlen;
  const View* queries = c.skips.empty() ? nullptr : &vqueries;
  REQUIRE(attention_forward_kernel(ctx, {.q = &q,
                                         .k = &k,
                                         .v = &v,
                                         .cu_seqlens = &vcu,
                                         .cu_queries = queries,
                                         .lengths = len,
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
                                          .out = &vout,
                                          .lse = &vlse,
                                          .dq = &vdq,
                                          .dk = &vdk,
                                          .dv = &vdv,
                                          .scale = c.scale(),
                                          .softcap = c.softcap,
                                          .window = c.window,
                                          .causal = c.causal}) == 0);
  const std::vector<double> in = fused.values(), gradient = dout.values();
  const AttentionDefinition definition(c, in, gradient);
  const AttentionResults& want = definition.results();
  // bf16 rounds p and ds before their products, and the backward reads a rounded out.
  const double growth = std::pow(range / 2, sizeof(T) == 2 ? 2 : 3);
  const double tolerance = growth * (std::is_same_v<T, double>  ? 1e-13
                                     : std::is_same_v<T, float> ? 3e-6
                                                                : 4 * epsilon_of<T>());
  check_close(out, want.out, tolerance);
  check_close(lse, want.lse, std::is_same_v<T, double> ? 1e-13 : 3e-6);
  const double group = std::sqrt(static_cast<double>(c.group()));
  check_close(dq, want.dq, 2 * tolerance);
  check_close(dk, want.dk, 3 * group * tolerance);
  check_close(dv, want.dv, 3 * group * tolerance);
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
      {{0, 90, 180, 270}, {80, 20, 0}, 2, 1, 40, true, 0, 0, {0, 20, 7}},
      {{0, 90, 180}, {30, 90}, 2, 1, 16, false, 0, 0, {40, 64}},
  };
}

TEST_CASE_TEMPLATE("attention equals its definition", T, float, bf16, f16, double) {
  for (const Case& c : cases()) check_attention<T>(c);
}

// From tile to tile by more and by less than what a running maximum may lag behind.
TEST_CASE_TEMPLATE("attention is right where maxima rise", T, float, bf16, f16, double) {
  check_attention<T>({{0, 300}, {}, 6, 2, 64}, 2, 6);
  check_attention<T>({{0, 200}, {}, 3, 1, 40, false, 70}, 2, 6);
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
  std::fill(c.get(), c.get() + m * n, A(0.5));
  const TileScope scope;
  for (const bool accumulate : {true, false}) {
    tile_gemm({m, n, k}, a.get(), k, b.get(), c.get(), n, accumulate);
    double worst = 0;
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        double want = accumulate ? 0.5 : 0;
        for (int64_t l = 0; l < k; ++l) want += plain_a[i * k + l] * plain_b[l * n + j];
        worst = std::max(worst, std::abs(static_cast<double>(c.get()[i * n + j]) - want));
      }
    }
    CHECK(worst < (std::is_same_v<A, double> ? 1e-13 : 2e-5));
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
