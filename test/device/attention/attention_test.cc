// Attention on the device against its definition in f64, as near to it as the CPU is: every float
// type, grouped heads, packed and padded segments, causal and full, windows, soft-caps, head sizes
// that the tensor cores take and those that they do not, operands taken in place
// from a fused product.
#include "support/attention_definition.h"
#include "support/device_test.h"
#include "support/orders.h"

namespace {

using namespace balora;
using namespace balora::test;

using Case = AttentionCase;

// Both rows on operands that live on both sides.
template <typename T>
class Attention {
 public:
  explicit Attention(const Case& c) : c_(c) {
    const int64_t n = c.rows(), m = c.cu_queries().back();
    fused = t.random<T>({n, c.width()}, 2), dout = t.random<T>({m, c.heads, c.size});
    out = t.empty<T>({m, c.heads, c.size}), lse = t.empty<Acc<T>>({m, c.heads});
    dq = t.empty<T>({m, c.heads, c.size});
    dk = t.empty<T>({n, c.kv_heads, c.size}), dv = t.empty<T>({n, c.kv_heads, c.size});
    const auto integers = [&](const std::vector<int32_t>& list) {
      return t.values<int32_t>({static_cast<int64_t>(list.size())},
                               std::vector<double>(list.begin(), list.end()));
    };
    cu = integers(c.cu);
    if (!c.skips.empty()) cu_queries = integers(c.cu_queries());
    if (!c.lengths.empty()) lengths = integers(c.lengths);
  }

  int32_t forward(const KernelTable& k, Context* ctx, const DeviceTest::ViewOf& view) const {
    const View q = slice(view, 0, c_.heads), keys = slice(view, c_.heads, c_.kv_heads);
    const View values = slice(view, c_.heads + c_.kv_heads, c_.kv_heads);
    return call(k.attention_forward, ctx,
                {.q = &q,
                 .k = &keys,
                 .v = &values,
                 .cu_seqlens = view(cu),
                 .cu_queries = view(cu_queries),
                 .lengths = view(lengths),
                 .out = view(out),
                 .lse = view(lse),
                 .scale = c_.scale(),
                 .softcap = c_.softcap,
                 .window = c_.window,
                 .causal = c_.causal});
  }

  int32_t backward(const KernelTable& k, Context* ctx, const DeviceTest::ViewOf& view) const {
    const View q = slice(view, 0, c_.heads), keys = slice(view, c_.heads, c_.kv_heads);
    const View values = slice(view, c_.heads + c_.kv_heads, c_.kv_heads);
    return call(k.attention_backward, ctx,
                {.dout = view(dout),
                 .q = &q,
                 .k = &keys,
                 .v = &values,
                 .cu_seqlens = view(cu),
                 .cu_queries = view(cu_queries),
                 .lengths = view(lengths),
                 .out = view(out),
                 .lse = view(lse),
                 .dq = view(dq),
                 .dk = view(dk),
                 .dv = view(dv),
                 .scale = c_.scale(),
                 .softcap = c_.softcap,
                 .window = c_.window,
                 .causal = c_.causal});
  }
  void both() {
    t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      return forward(k, ctx, view) | backward(k, ctx, view);
    });
  }

  AttentionResults definition() const {
    const std::vector<double> in = fused->host_values(), gradient = dout->host_values();
    return AttentionDefinition(c_, in, gradient).results();
  }

  DeviceTest t;
  Array fused, dout, out, lse, dq, dk, dv, cu, cu_queries, lengths;

 private:
  View slice(const DeviceTest::ViewOf& view, int64_t head, int64_t heads) const {
    View v = *view(out);
    v.data = static_cast<T*>(view(fused)->data) + head * c_.size;
    if (head > 0) v.shape[0] = c_.rows();
    v.shape[1] = heads;
    v.stride[0] = c_.width();
    return v;
  }

  Case c_;
};

template <typename T>
void check_attention(const Case& c) {
  CAPTURE(c.size);
  CAPTURE(c.rows());
  CAPTURE(c.causal);
  CAPTURE(c.window);
  CAPTURE(c.softcap);
  Attention<T> a(c);
  a.both();
  const AttentionResults want = a.definition();
  const double tolerance = std::is_same_v<T, double>  ? 1e-14
                           : std::is_same_v<T, float> ? 1e-6
                                                      : epsilon_of<T>();
  a.t.check_truth(a.out, want.out, tolerance);
  a.t.check_truth(a.lse, want.lse, std::is_same_v<T, double> ? 1e-14 : 1e-6);
  a.t.check_truth(a.dq, want.dq, tolerance);
  a.t.check_truth(a.dk, want.dk, tolerance);
  a.t.check_truth(a.dv, want.dv, tolerance);
}

std::vector<Case> cases() {
  return {
      {{0, 1}, {}, 1, 1, 1},
      {{0, 31}, {}, 2, 1, 16},
      {{0, 33}, {}, 3, 1, 80, false},
      {{0, 130}, {}, 1, 1, 64},
      {{0, 65}, {}, 2, 2, 128, true, 0, 0, {}, 8},
      {{0, 1, 34, 34, 165}, {}, 3, 3, 7},
      {{0, 33, 123}, {}, 2, 1, 4, false},
      {{0, 33}, {}, 1, 1, 96, true, 0, 0, {}, 3},
      {{0, 65}, {}, 1, 1, 256},
      {{0, 150}, {}, 1, 1, 16, true, 1},
      {{0, 130}, {}, 2, 1, 24, true, 5},
      {{0, 300}, {}, 1, 1, 40, true, 130},
      {{0, 200}, {}, 1, 1, 40, false, 70},
      {{0, 70, 141}, {}, 2, 1, 32, true, 0, 5.0},
      {{0, 129}, {}, 1, 1, 16, true, 20, 2.0},
      {{0, 70, 140, 210}, {33, 70, 1}, 3, 1, 64},
      {{0, 70, 140, 210}, {65, 0, 64}, 1, 1, 48, false},
      {{0, 33}, {}, 1, 1, 300},
      {{0, 70, 140, 280}, {}, 2, 1, 64, true, 0, 0, {0, 24, 128}},
      {{0, 33, 66, 200}, {}, 1, 1, 33, true, 0, 3.0, {0, 33, 70}},
      {{0, 200, 330}, {}, 1, 1, 256, true, 50, 0, {150, 9}},
      {{0, 90, 180}, {}, 1, 1, 24, false, 40, 0, {65, 3}},
      {{0, 90, 180, 270}, {80, 20, 0}, 2, 1, 40, true, 0, 0, {0, 20, 7}},
      {{0, 90, 180}, {30, 90}, 1, 1, 128, false, 0, 0, {40, 64}},
      {{0, 40, 80}, {}, 1, 1, 300, true, 0, 0, {0, 17}},
  };
}

TEST_CASE_TEMPLATE("attention is as near to its definition as the CPU's", T, BALORA_FLOAT_TYPES) {
  for (const Case& c : cases()) check_attention<T>(c);
}

TEST_CASE("attention takes large scores and repeats its bits") {
  const Case c{{0, 130}, {}, 3, 1, 64};
  check_orders([&] {
    Attention<bf16> a(c);
    for (int64_t i = 0; i < a.fused->size(); ++i) a.fused->set(i, 12 * a.fused->host(i));
    a.both();
    const AttentionResults want = a.definition();
    a.t.check_truth(a.out, want.out, epsilon_of<bf16>());
    a.t.check_truth(a.lse, want.lse, 1e-6);
    return values_of({a.out, a.dq, a.dk, a.dv});
  });
}

TEST_CASE("attention refuses segments that do not cover its rows when it is waited for") {
  const auto said = [](const Case& c, int64_t rows, const std::vector<int32_t>& queries = {}) {
    Case given = c;
    given.cu = {0, static_cast<int32_t>(rows)};
    Attention<float> a(given);
    const auto integers = [&](const std::vector<int32_t>& list) {
      return a.t.values<int32_t>({static_cast<int64_t>(list.size())},
                                 std::vector<double>(list.begin(), list.end()));
    };
    a.cu = integers(c.cu);
    if (!c.lengths.empty()) a.lengths = integers(c.lengths);
    if (!queries.empty()) a.cu_queries = integers(queries);
    CHECK(a.t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
      return a.forward(k, ctx, view);
    }) == 0);
    CHECK(a.t.synchronize() != 0);
    return a.t.error();
  };
  CHECK(said({{0, 3}, {}, 1, 1, 2}, 4) ==
        "attention_forward: cu_seqlens must rise from 0 to the 4 rows, got 0 to 3");
  CHECK(said({{0, 5, 4}, {}, 1, 1, 2}, 4) ==
        "attention_forward: cu_seqlens falls from 5 to 4 at index 2");
  CHECK(said({{0, 4}, {5}, 1, 1, 2}, 4) ==
        "attention_forward: length 5 of segment 0 is not within its 4 rows");
  CHECK(said({{0, 4}, {}, 1, 1, 2}, 4, {0, 3}) ==
        "attention_forward: cu_queries must rise from 0 to the 4 rows of q, got 0 to 3");
  CHECK(said({{0, 1, 4}, {}, 1, 1, 2}, 4, {0, 2, 4}) ==
        "attention_forward: segment 0 has 2 queries, but 1 rows");
}

}  // namespace
