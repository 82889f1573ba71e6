// The data that a linear of few rows keeps of its low-rank parts in text generation: it is made
// once for the values that the factors have, never used for others, the same bit for bit as what is
// made anew, and given back.
#include <doctest/doctest.h>

#include "kernels/cpu/linear/pair.h"
#include "support/kernel_test.h"

namespace {

using namespace balora;
using namespace balora::test;

// A slot as a storage has it.
struct Slot : balora_slot {
  Slot() : balora_slot{} {}
  ~Slot() {
    if (data) destroy(data);
  }
  Slot(const Slot&) = delete;
};

// A linear with two parts, of which the second has a start.
template <typename T>
class Layer {
 public:
  using A = Acc<T>;
  static constexpr int64_t kRows = 80, kIn = 70, kOuts = 45, kRank = 6;

  Layer()
      : x_({kRows, kIn}, random_),
        w_({kOuts, kIn}, random_, 0.5),
        u_({kRows, kRank}),
        u2_({kRows, kRank}) {
    for (int i = 0; i < 3; ++i) {
      a_.emplace_back(std::vector<int64_t>{kRank, kIn}, random_);
      b_.emplace_back(std::vector<int64_t>{kOuts, kRank}, random_);
    }
    move_pair();
  }

  // The second part moves away from its start.
  void move_pair() {
    for (int64_t i = 0; i < a_[1].size(); ++i) a_[1].data()[i] = A(1.1) * a_[2].data()[i];
    for (int64_t i = 0; i < b_[1].size(); ++i) b_[1].data()[i] = A(0.9) * b_[2].data()[i];
  }
  // Other values, without saying so.
  void change(Array<A>& factor) {
    for (int64_t i = 0; i < factor.size(); ++i) factor.data()[i] = -factor.data()[i];
  }

  std::vector<T> forward(int64_t rows, bool with_slots = true) {
    TestContext ctx(2);
    Context* const context = ctx;
    static int64_t accounted;
    accounted = 0;
    context->account = [](Context*, int64_t bytes) { accounted += bytes; };
    Array<T> y({rows, kOuts});
    View x = x_.view(), w = w_.view(), vy = y.view(), u = u_.view(), u2 = u2_.view();
    x.shape[0] = u.shape[0] = u2.shape[0] = rows;
    std::vector<View> a, b;
    for (size_t i = 0; i < 3; ++i) {
      a.push_back(a_[i].view()), b.push_back(b_[i].view());
      a[i].version = a_version[i], b[i].version = b_version[i];
      if (with_slots) a[i].versioned = &a_slots_[i], b[i].versioned = &b_slots_[i];
    }
    const balora_low_rank parts[] = {{.a = &a[0], .b = &b[0], .u = &u, .scale = 0.5},
                                     {.a = &a[1],
                                      .b = &b[1],
                                      .start_a = &a[2],
                                      .start_b = &b[2],
                                      .u = &u2,
                                      .scale = 1.5,
                                      .form = BALORA_LOW_RANK_SINCE_START}};
    const balora_linear linear{.weight = {.dense = &w}, .y = &vy, .parts = parts, .part_count = 2};
    REQUIRE(linear_forward_kernel(
                ctx, {.x = &x, .linears = &linear, .count = 1, .batch_invariant = by_rows}) == 0);
    kept_bytes += accounted;
    return {y.data(), y.data() + y.size()};
  }

  std::vector<Array<A>>& a() { return a_; }
  std::vector<Array<A>>& b() { return b_; }
  int64_t slot_bytes() const {
    int64_t bytes = 0;
    for (int i = 0; i < 3; ++i) bytes += a_slots_[i].bytes + b_slots_[i].bytes;
    return bytes;
  }

  int64_t a_version[3] = {1, 1, 1}, b_version[3] = {1, 1, 1};
  int64_t kept_bytes = 0;  // as they were accounted
  int32_t by_rows = 1;     // as in text generation

 private:
  std::mt19937 random_{11};
  Slot a_slots_[3], b_slots_[3];
  Array<T> x_, w_;
  std::vector<Array<A>> a_, b_;
  Array<A> u_, u2_;
};

template <typename T>
bool same(const std::vector<T>& x, const std::vector<T>& y) {
  return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * sizeof(T)) == 0;
}

TEST_CASE_TEMPLATE("linear: few rows keep what is made of the factors", T, float, bf16, f16,
                   double) {
  Layer<T> layer;
  const auto anew = [&](int64_t rows) { return layer.forward(rows, false); };
  for (const int64_t rows : {int64_t{1}, int64_t{3}, kFewRows}) {
    CAPTURE(rows);
    CHECK(same(layer.forward(rows), anew(rows)));
  }
  CHECK(layer.kept_bytes > 0);
  CHECK(layer.kept_bytes == layer.slot_bytes());

  // It is what was kept that is used: values that change unseen make no difference.
  const auto before = layer.forward(2);
  layer.change(layer.a()[0]), layer.change(layer.b()[1]);
  CHECK(same(layer.forward(2), before));
  CHECK_FALSE(same(anew(2), before));

  ++layer.a_version[0];
  CHECK_FALSE(same(layer.forward(2), before));
  ++layer.b_version[1];
  CHECK(same(layer.forward(2), anew(2)));
  CHECK(layer.kept_bytes == layer.slot_bytes());

  layer.move_pair(), ++layer.a_version[1], ++layer.b_version[1];
  CHECK(same(layer.forward(2), anew(2)));
  layer.change(layer.a()[2]), ++layer.a_version[2];  // the start alone
  CHECK(same(layer.forward(2), anew(2)));
}

TEST_CASE_TEMPLATE("linear: many rows keep nothing, and free what is stale", T, float, bf16) {
  Layer<T> layer;
  layer.forward(kFewRows + 1);
  CHECK(layer.slot_bytes() == 0);
  layer.forward(1);
  const int64_t kept = layer.slot_bytes();
  CHECK(kept > 0);
  CHECK(same(layer.forward(kFewRows + 1), layer.forward(kFewRows + 1, false)));
  CHECK(layer.slot_bytes() == kept);  // the factors still have those values
  for (int i = 0; i < 2; ++i) ++layer.a_version[i], ++layer.b_version[i];
  layer.forward(kFewRows + 1);
  CHECK(layer.slot_bytes() == 0);
  CHECK(layer.kept_bytes == 0);
}

TEST_CASE_TEMPLATE("linear: few rows keep nothing in training, and free what is stale", T, float,
                   bf16) {
  Layer<T> layer;
  layer.by_rows = 0;
  layer.forward(1);
  CHECK(layer.slot_bytes() == 0);
  layer.by_rows = 1;
  layer.forward(1);
  CHECK(layer.slot_bytes() > 0);
  layer.by_rows = 0;
  for (int i = 0; i < 2; ++i) ++layer.a_version[i], ++layer.b_version[i];
  layer.forward(1);
  CHECK(layer.slot_bytes() == 0);
  CHECK(layer.kept_bytes == 0);
}

}  // namespace
