// Attention with relative positions on the device against its definition in f64, as near to it as
// the CPU is: every combination of terms, other keys than queries, padding, causal, heads of more
// than one slice, more than one tile, gradients of everything.
#include "support/device_test.h"
#include "support/orders.h"
#include "support/relative_definition.h"

namespace {

using namespace balora;
using namespace balora::test;

using Case = RelativeCase;

template <typename T>
class RelativeAttention {
 public:
  explicit RelativeAttention(const Case& c) : c_(c) {
    const int64_t n = c.cu.back(), m = c.keys().back(), h = c.heads, d = c.size;
    q = t.random<T>({n, h, d}), k = t.random<T>({m, h, d}), v = t.random<T>({m, h, d});
    dout = t.random<T>({n, h, d});
    out = t.empty<T>({n, h, d}), lse = t.empty<Acc<T>>({n, h});
    dq = t.empty<T>({n, h, d}), dk = t.empty<T>({m, h, d}), dv = t.empty<T>({m, h, d});
    if (c.terms & kBias)
      bias = t.random<T>({c.relative(), h}), dbias = t.empty<T>({c.relative(), h});
    if (c.terms & kPositionK)
      pk = t.random<T>({c.positions, h, d}), dpk = t.empty<T>({c.positions, h, d});
    if (c.terms & kPositionQ)
      pq = t.random<T>({c.positions, h, d}), dpq = t.empty<T>({c.positions, h, d});
    std::vector<int32_t> places;
    for (int64_t r = 0; c.placed() && r < c.relative(); ++r) places.push_back(c.position(r));
    index = integers(places), cu = integers(c.cu), cu_keys = integers(c.keys());
    lengths = integers(c.lengths), key_lengths = integers(c.key_lengths);
  }

  int32_t run(const KernelTable& table, Context* ctx, const DeviceTest::ViewOf& view) const {
    const Relative r{.q = view(q),
                     .k = view(k),
                     .v = view(v),
                     .cu_queries = view(cu),
                     .cu_keys = view(cu_keys),
                     .query_lengths = view(lengths),
                     .key_lengths = view(key_lengths),
                     .bias = view(bias),
                     .position_k = view(pk),
                     .position_q = view(pq),
                     .index = view(index),
                     .scale = c_.scale,
                     .causal = c_.causal};
    const RelativeGradients g{.q = view(dq),
                              .k = view(dk),
                              .v = view(dv),
                              .bias = view(dbias),
                              .position_k = view(dpk),
                              .position_q = view(dpq)};
    return call(table.relative_attention_forward, ctx,
                {.r = &r, .out = view(out), .lse = view(lse)}) |
           call(table.relative_attention_backward, ctx,
                {.dout = view(dout), .r = &r, .out = view(out), .lse = view(lse), .gradients = &g});
  }
  void both() {
    t.both([&](const KernelTable& table, Context* ctx, const auto& view) {
      return run(table, ctx, view);
    });
  }
  RelativeDefinition definition() const {
    const auto rows = [&](const Array& array) {
      return HeadRows(
          array ? array->host_values()
                : std::vector<double>(static_cast<size_t>(c_.positions * c_.heads * c_.size), 0),
          c_.heads, c_.size);
    };
    return RelativeDefinition(c_, rows(q), rows(k), rows(v), rows(pk), rows(pq),
                              bias ? bias->host_values() : std::vector<double>{}, rows(dout));
  }
  Array integers(const std::vector<int32_t>& list) {
    if (list.empty()) return nullptr;
    return t.values<int32_t>({static_cast<int64_t>(list.size())},
                             std::vector<double>(list.begin(), list.end()));
  }

  DeviceTest t;
  Array q, k, v, dout, out, lse, dq, dk, dv, bias, dbias, pk, dpk, pq, dpq;
  Array index, cu, cu_keys, lengths, key_lengths;

 private:
  Case c_;
};

template <typename T>
void check_relative(const Case& c) {
  CAPTURE(c.size);
  CAPTURE(c.cu.back());
  CAPTURE(c.terms);
  CAPTURE(c.causal);
  RelativeAttention<T> a(c);
  a.both();
  const RelativeDefinition want = a.definition();
  const double tolerance = std::is_same_v<T, double>  ? 1e-14
                           : std::is_same_v<T, float> ? 1e-6
                                                      : epsilon_of<T>();
  a.t.check_truth(a.out, want.out.at, tolerance);
  a.t.check_truth(a.lse, want.lse, std::is_same_v<T, double> ? 1e-14 : 1e-6);
  a.t.check_truth(a.dq, want.dq.at, tolerance);
  a.t.check_truth(a.dk, want.dk.at, tolerance);
  a.t.check_truth(a.dv, want.dv.at, tolerance);
  if (a.dbias) a.t.check_truth(a.dbias, want.dbias, tolerance);
  if (a.dpk) a.t.check_truth(a.dpk, want.dpk.at, tolerance);
  if (a.dpq) a.t.check_truth(a.dpq, want.dpq.at, tolerance);
}

std::vector<Case> cases() {
  return {
      {{0, 1}, {}, {}, {}, 1, 1, kAll, 1},
      {{0, 31}, {}, {}, {}, 2, 8},
      {{0, 33, 64}, {}, {}, {}, 3, 5, kBias},
      {{0, 123, 130}, {}, {}, {}, 1, 8, kBias, 0, true},
      {{0, 31}, {}, {}, {}, 2, 80, kPositionK, 7},
      {{0, 33}, {}, {}, {}, 1, 8, kPositionQ, 40},
      {{0, 70, 70, 101}, {}, {}, {}, 2, 6, kPositionK | kPositionQ, 133},
      {{0, 33, 66, 99}, {}, {33, 1, 20}, {33, 1, 20}, 2, 4, kAll, 9},
      {{0, 5, 70}, {0, 33, 40}, {}, {}, 2, 8},
      {{0, 5, 9, 12}, {0, 8, 8, 15}, {3, 4, 3}, {8, 0, 2}, 2, 3, kBias},
  };
}

TEST_CASE_TEMPLATE("relative attention is as near to its definition as the CPU's", T,
                   BALORA_FLOAT_TYPES) {
  for (const Case& c : cases()) check_relative<T>(c);
}

TEST_CASE("relative attention repeats its bits") {
  const Case c{{0, 70, 101}, {}, {}, {}, 2, 6, kAll, 33};
  check_orders([&] {
    RelativeAttention<bf16> a(c);
    a.both();
    return values_of({a.out, a.dq, a.dk, a.dv, a.dbias, a.dpk, a.dpq});
  });
}

TEST_CASE("relative attention refuses what it cannot place when it is waited for") {
  const auto said = [](const auto& spoil) {
    RelativeAttention<float> a({{0, 4}, {}, {}, {}, 1, 2, kAll, 3});
    spoil(a);
    CHECK(a.t.on_device([&](const KernelTable& table, Context* ctx, const auto& view) {
      return a.run(table, ctx, view);
    }) == 0);
    CHECK(a.t.synchronize() != 0);
    return a.t.error();
  };
  CHECK(said([](auto& a) { a.index->set(3, 3); }) ==
        "relative_attention_forward: index[3] = 3 is not a row of the 3 positions");
  CHECK(said([](auto& a) {
          a.bias = a.t.template random<float>({5, 1});
          a.dbias = a.t.template empty<float>({5, 1});
          a.index = a.integers({0, 1, 2, 1, 0});
        }) ==
        "relative_attention_forward: segment 0 has 4 rows, more than the 5 relative positions "
        "reach");
  CHECK(said([](auto& a) { a.cu_keys = a.integers({0, 3}); }) ==
        "relative_attention_forward: cu_seqlens must rise from 0 to the 4 rows, got 0 to 3");
  CHECK(said([](auto& a) { a.cu_keys = a.integers({0, 4000}); }) ==
        "relative_attention_forward: cu_seqlens must rise from 0 to the 4 rows, got 0 to "
        "4000");
}

}  // namespace
