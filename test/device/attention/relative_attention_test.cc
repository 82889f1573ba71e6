// Attention with relative positions on the device against its definition in f64, as near to it as
// the CPU is: every combination of terms, other keys than queries, padding, causal, heads of more
// than one slice, more than one tile, gradients of everything.
#include "support/attention_definition.h"
#include "support/device_test.h"
#include "support/orders.h"

namespace {

using namespace balora;
using namespace balora::test;

enum Term { kBias = 1, kPositionK = 2, kPositionQ = 4, kAll = 7 };

struct Case {
  std::vector<int32_t> cu, cu_keys;  // cu_keys empty: as cu
  std::vector<int32_t> lengths, key_lengths;
  int64_t heads, size;
  int terms = 0;
  int64_t positions = 0;
  bool causal = false;
  double scale = 0.3;

  const std::vector<int32_t>& keys() const { return cu_keys.empty() ? cu : cu_keys; }
  int64_t longest() const {
    int64_t most = 1;
    for (const auto* side : {&cu, &keys()}) {
      for (size_t b = 0; b + 1 < side->size(); ++b) {
        most = std::max<int64_t>(most, (*side)[b + 1] - (*side)[b]);
      }
    }
    return most;
  }
  int64_t relative() const { return 2 * longest() - 1; }
  bool placed() const { return terms & (kPositionK | kPositionQ); }
  int32_t position(int64_t place) const { return static_cast<int32_t>(place * 7 % positions); }
};

// Rows of heads in f64.
struct Rows {
  std::vector<double> at;
  int64_t heads = 0, size = 0;
  Rows(std::vector<double> values, int64_t h, int64_t d)
      : at(std::move(values)), heads(h), size(d) {}
  double* row(int64_t r, int64_t h) { return at.data() + (r * heads + h) * size; }
};

class Definition {
 public:
  Definition(const Case& c, Rows q, Rows k, Rows v, Rows position_k, Rows position_q,
             std::vector<double> bias, Rows dout)
      : c_(c),
        q_(std::move(q)),
        k_(std::move(k)),
        v_(std::move(v)),
        pk_(std::move(position_k)),
        pq_(std::move(position_q)),
        bias_(std::move(bias)),
        dout_(std::move(dout)) {
    for (Rows* rows : {&out, &dq}) rows->at.assign(q_.at.size(), 0);
    for (Rows* rows : {&dk, &dv}) rows->at.assign(k_.at.size(), 0);
    for (Rows* rows : {&dpk, &dpq}) rows->at.assign(pk_.at.size(), 0);
    for (Rows* rows : {&out, &dq, &dk, &dv, &dpk, &dpq}) {
      rows->heads = c.heads, rows->size = c.size;
    }
    dbias.assign(static_cast<size_t>(c.relative() * c.heads), 0);
    lse.assign(static_cast<size_t>(c.cu.back() * c.heads), 0);
    for (size_t b = 0; b + 1 < c.cu.size(); ++b) {
      const auto count = [&](const std::vector<int32_t>& cu, const std::vector<int32_t>& lengths) {
        return lengths.empty() ? cu[b + 1] - cu[b] : lengths[b];
      };
      keys_ = count(c.keys(), c.key_lengths);
      first_key_ = c.keys()[b];
      const int64_t queries = count(c.cu, c.lengths);
      for (int64_t h = 0; h < c.heads; ++h) {
        for (int64_t t = 0; t < queries; ++t) query(c.cu[b] + t, t, h);
      }
    }
  }
  Rows out{{}, 0, 0}, dq = out, dk = out, dv = out, dpk = out, dpq = out;
  std::vector<double> lse, dbias;

 private:
  double dot(const double* x, const double* y) const { return test::dot(x, y, c_.size); }
  void add(double* y, double factor, const double* x) const { add_scaled(y, factor, x, c_.size); }
  double score(int64_t row, int64_t t, int64_t j, int64_t h) {
    const int64_t place = j - t + c_.longest() - 1;
    double sum = dot(q_.row(row, h), k_.row(first_key_ + j, h));
    if (c_.terms & kPositionK) sum += dot(q_.row(row, h), pk_.row(c_.position(place), h));
    if (c_.terms & kPositionQ) {
      sum += dot(k_.row(first_key_ + j, h), pq_.row(c_.position(place), h));
    }
    const double bias = c_.terms & kBias ? bias_[static_cast<size_t>(place * c_.heads + h)] : 0;
    return c_.scale * sum + bias;
  }

  void query(int64_t row, int64_t t, int64_t h) {
    const int64_t seen = c_.causal ? std::min(keys_, t + 1) : keys_;
    if (seen == 0) return;
    std::vector<double> p, dp;
    double highest = -INFINITY, sum = 0, delta = 0;
    for (int64_t j = 0; j < seen; ++j) p.push_back(score(row, t, j, h));
    for (const double s : p) highest = std::max(highest, s);
    for (double& s : p) s = std::exp(s - highest), sum += s;
    lse[static_cast<size_t>(row * c_.heads + h)] = highest + std::log(sum);
    for (int64_t j = 0; j < seen; ++j) {
      double& weight = p[static_cast<size_t>(j)];
      weight /= sum;
      dp.push_back(dot(dout_.row(row, h), v_.row(first_key_ + j, h)));
      delta += weight * dp.back();
      add(out.row(row, h), weight, v_.row(first_key_ + j, h));
    }
    for (int64_t j = 0; j < seen; ++j) {
      const double weight = p[static_cast<size_t>(j)];
      gradient(row, t, j, h, weight * (dp[static_cast<size_t>(j)] - delta));
      add(dv.row(first_key_ + j, h), weight, dout_.row(row, h));
    }
  }

  void gradient(int64_t row, int64_t t, int64_t j, int64_t h, double ds) {
    const int64_t place = j - t + c_.longest() - 1, key = first_key_ + j;
    dbias[static_cast<size_t>(place * c_.heads + h)] += ds;
    ds *= c_.scale;
    add(dq.row(row, h), ds, k_.row(key, h));
    add(dk.row(key, h), ds, q_.row(row, h));
    if (c_.terms & kPositionK) {
      add(dq.row(row, h), ds, pk_.row(c_.position(place), h));
      add(dpk.row(c_.position(place), h), ds, q_.row(row, h));
    }
    if (c_.terms & kPositionQ) {
      add(dk.row(key, h), ds, pq_.row(c_.position(place), h));
      add(dpq.row(c_.position(place), h), ds, k_.row(key, h));
    }
  }

  const Case& c_;
  Rows q_, k_, v_, pk_, pq_;
  std::vector<double> bias_;
  Rows dout_;
  int64_t keys_ = 0, first_key_ = 0;
};

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
  Definition definition() const {
    const auto rows = [&](const Array& array) {
      return Rows(
          array ? array->host_values()
                : std::vector<double>(static_cast<size_t>(c_.positions * c_.heads * c_.size), 0),
          c_.heads, c_.size);
    };
    return Definition(c_, rows(q), rows(k), rows(v), rows(pk), rows(pq),
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
  const Definition want = a.definition();
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
