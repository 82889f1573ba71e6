// The linears' rows on the device against plain loops in f64, for every type and, in bf16, both
// ways of summing: several linears on one input, low-rank parts (none, one, some that cancel, with
// a start), output scales, odd and unaligned sizes, a separate adapter input,
// unwanted and unused operands.
#include "support/device_test.h"

namespace {

using namespace balora;
using namespace balora::test;

struct Part {
  int32_t linear;
  int64_t rank;
  double scale;
  bool start = false;  // that of the part before it, whose scale is negated here
};
struct Case {
  int64_t rows, in;
  std::vector<int64_t> outs;
  std::vector<Part> parts;
  bool bias = true, adapter_input = false, scaled = false;
  bool changed = false;  // the weights of all linears but the second
};

// A sum and the sum of its terms' sizes, which bounds what accumulation and pairs may leave in it,
// and how far roundings of a pair's change may move it.
struct Sum {
  double value = 0, magnitude = 0, rounding = 0;
  void add(double x, double y) { value += x * y, magnitude += std::abs(x * y); }
  void add(const Sum& s, double y) {
    value += s.value * y, magnitude += s.magnitude * std::abs(y);
    rounding += s.rounding * std::abs(y);
  }
};
using Sums = std::vector<Sum>;  // (rows,cols)

// `times` roundings to bf16 of what these sums are made of.
Sums rounded(Sums sums, int times) {
  for (Sum& sum : sums) sum.rounding += times * 0x1p-8 * sum.magnitude;
  return sums;
}

template <typename T>
void check_sums(const Array& array, const Sums& want, double storage_epsilon, const char* what) {
  const double relative = std::is_same_v<T, double> ? 0x1p-48
                          : std::is_same_v<T, bf16> ? 0x1p-15
                                                    : 0x1p-20;
  const double floor = std::is_same_v<T, f16> ? 0x1p-24 : 1e-30;
  const std::vector<double> got = array->from_device();
  REQUIRE(got.size() == want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    const double allowed = storage_epsilon * std::abs(want[i].value) +
                           relative * want[i].magnitude + want[i].rounding + floor;
    const bool close = std::abs(got[i] - want[i].value) <= allowed;
    if (!close) {
      CHECK_MESSAGE(close, what, "[", i, "]: got ", got[i], ", expected ", want[i].value,
                    ", allowed ", allowed);
      return;
    }
  }
}

template <typename T>
class Fixture {
 public:
  using A = Acc<T>;

  explicit Fixture(const Case& c) : case_(c) {
    x_ = t_.random<T>({c.rows, c.in}), xa_ = t_.random<T>({c.rows, c.in});
    dx_ = t_.empty<T>({c.rows, c.in}), dxa_ = t_.empty<T>({c.rows, c.in});
    for (const int64_t out : c.outs) {
      w_.push_back(t_.random<T>({out, c.in}, 0.5));
      change_.push_back(t_.random<T>({out, c.in}, 0.25));
      bias_.push_back(t_.random<T>({out}));
      dy_.push_back(t_.random<T>({c.rows, out}));
      y_.push_back(t_.empty<T>({c.rows, out}));
      scale_.push_back(t_.random<A>({out}, 2));
      unscaled_.push_back(t_.empty<T>({c.rows, out}));
    }
    for (const Part& part : c.parts) {
      const int64_t out = c.outs[static_cast<size_t>(part.linear)];
      a_.push_back(t_.random<A>({part.rank, c.in}));
      b_.push_back(t_.random<A>({out, part.rank}));
      u_.push_back(t_.random<A>({c.rows, part.rank}));
      da_.push_back(t_.empty<A>({part.rank, c.in}));
      db_.push_back(t_.empty<A>({out, part.rank}));
    }
  }

  // A PiSSA pair before its first step: part 1 is part 0 again.
  void repeat_first_part() {
    for (int64_t i = 0; i < a_[0]->size(); ++i) a_[1]->set(i, a_[0]->host(i));
    for (int64_t i = 0; i < b_[0]->size(); ++i) b_[1]->set(i, b_[0]->host(i));
  }

  std::vector<double> forward() {
    run([&](const KernelTable& k, Context* ctx, const auto& view) {
      const Views views(*this, view, y_);
      return call(k.linear_forward, ctx,
                  {.x = view(x_),
                   .x_adapter = case_.adapter_input ? view(xa_) : nullptr,
                   .linears = views.linears.data(),
                   .count = views.count()});
    });
    return y_[0]->from_device();
  }

  // A pair that has moved away from its start by `size`, on a base of zeros.
  void move_pair(double size) {
    std::uniform_real_distribution<double> step(-size, size);
    repeat_first_part();
    for (const Array& now : {a_[0], b_[0]}) {
      for (int64_t i = 0; i < now->size(); ++i) now->set(i, now->host(i) + step(t_.generator()));
    }
    for (int64_t i = 0; i < w_[0]->size(); ++i) w_[0]->set(i, 0);
  }
  // The parts' share of y, with what its roundings may cost.
  Sums low_rank_y() const {
    Sums y(static_cast<size_t>(y_[0]->size()));
    add_parts(y, 0);
    return y;
  }

  void check_forward() {
    forward();
    for (size_t p = 0; p < a_.size(); ++p) {
      if (case_.parts[p].start) continue;
      Sums want = u(p);
      if (changes(p)) want = rounded(want, 1);
      check_sums<T>(u_[p], want, 0, "u");
    }
    for (size_t l = 0; l < w_.size(); ++l) {
      Sums y = product(*x_, false, *w_[l], true);
      if (has_change(l)) add(y, product(*adapted(), false, *change_[l], true));
      const auto outs = static_cast<size_t>(case_.outs[l]);
      add_parts(y, static_cast<int32_t>(l));
      if (case_.scaled) check_sums<T>(unscaled_[l], y, epsilon_of<T>(), "unscaled");
      for (size_t i = 0; i < y.size(); ++i) {
        const auto column = static_cast<int64_t>(i % outs);
        Sum scaled;
        scaled.add(y[i], case_.scaled ? scale_[l]->host(column) : 1);
        if (case_.bias) scaled.add(bias_[l]->host(column), 1);
        y[i] = scaled;
      }
      check_sums<T>(y_[l], y, epsilon_of<T>(), "y");
    }
  }

  // `unused`: the linear whose output was not used, or -1.
  void check_backward(bool with_dx, int32_t unused = -1) {
    set_u();
    const bool split = case_.adapter_input;
    run([&](const KernelTable& k, Context* ctx, const auto& view) {
      Views views(*this, view, dy_);
      if (unused >= 0) views.linears[static_cast<size_t>(unused)].y = nullptr;
      return call(k.linear_backward, ctx,
                  {.x = view(x_),
                   .x_adapter = split ? view(xa_) : nullptr,
                   .dx = with_dx ? view(dx_) : nullptr,
                   .dx_adapter = with_dx && split ? view(dxa_) : nullptr,
                   .linears = views.linears.data(),
                   .count = views.count()});
    });
    Sums base(static_cast<size_t>(x_->size())), low_rank = base;
    for (size_t l = 0; l < w_.size(); ++l) {
      if (static_cast<int32_t>(l) == unused) continue;
      add(base, product(*dy_[l], false, *w_[l], false));
    }
    for (size_t p = 0; p < a_.size(); ++p) {
      const bool used = case_.parts[p].linear != unused;
      const bool change = changes(p);
      if (used && change) add_change_dx(split ? low_rank : base, p);
      const bool start = p > 0 && changes(p - 1);
      if (used && !change && !start) {
        add_product(split ? low_rank : base, du(p), *a_[p], false, 1);
      }
      if (case_.parts[p].start) continue;
      Sums da(static_cast<size_t>(da_[p]->size())), db(static_cast<size_t>(db_[p]->size()));
      if (used) {
        const Array& dy = dy_[static_cast<size_t>(case_.parts[p].linear)];
        add_transposed(da, change ? change_du(p) : du(p), *adapted());
        db = product(*dy, true, *u_[p], false, case_.parts[p].scale);
        if (change) db = rounded(db, 1);
      }
      check_sums<T>(da_[p], da, 0, "da");
      check_sums<T>(db_[p], db, 0, "db");
    }
    if (!with_dx) return;
    check_sums<T>(dx_, base, epsilon_of<T>(), "dx");
    if (split) check_sums<T>(dxa_, low_rank, epsilon_of<T>(), "dx_adapter");
  }

 private:
  struct Views {
    std::vector<LinearOperands> linears;
    std::vector<std::vector<LowRankOperands>> parts;  // of each linear
    template <typename ViewOf>
    Views(const Fixture& f, const ViewOf& view, const std::vector<Array>& y) : parts(f.w_.size()) {
      for (size_t p = 0; p < f.a_.size(); ++p) {
        const Part& part = f.case_.parts[p];
        std::vector<LowRankOperands>& own = parts[static_cast<size_t>(part.linear)];
        if (part.start) {
          own.back().start_a = view(f.a_[p]), own.back().start_b = view(f.b_[p]);
          continue;
        }
        own.push_back({.a = view(f.a_[p]),
                       .b = view(f.b_[p]),
                       .u = view(f.u_[p]),
                       .da = view(f.da_[p]),
                       .db = view(f.db_[p]),
                       .scale = part.scale});
      }
      for (size_t l = 0; l < f.w_.size(); ++l) {
        linears.push_back({.weight = {.dense = view(f.w_[l])},
                           .weight_change = f.has_change(l) ? view(f.change_[l]) : nullptr,
                           .bias = f.case_.bias ? view(f.bias_[l]) : nullptr,
                           .output_scale = f.case_.scaled ? view(f.scale_[l]) : nullptr,
                           .unscaled = f.case_.scaled ? view(f.unscaled_[l]) : nullptr,
                           .y = view(y[l]),
                           .parts = parts[l].data(),
                           .part_count = static_cast<int32_t>(parts[l].size())});
      }
    }
    int32_t count() const { return static_cast<int32_t>(linears.size()); }
  };

  template <typename Row>
  void run(const Row& row) {
    const int32_t status = t_.on_device(row);
    REQUIRE_MESSAGE(status == 0, t_.error());
    REQUIRE(t_.synchronize() == 0);
  }
  const Array& adapted() const { return case_.adapter_input ? xa_ : x_; }
  bool has_change(size_t linear) const { return case_.changed && linear != 1; }

  static std::pair<int64_t, int64_t> extents(const Operand& x, bool transposed) {
    const View v = x.host_view();
    return transposed ? std::pair{v.shape[1], v.shape[0]} : std::pair{v.shape[0], v.shape[1]};
  }
  static double at(const Operand& x, bool transposed, int64_t i, int64_t j) {
    const View v = x.host_view();
    return x.host(transposed ? j * v.shape[1] + i : i * v.shape[1] + j);
  }
  static Sums product(const Operand& x, bool tx, const Operand& y, bool ty, double scale = 1) {
    const auto [m, k] = extents(x, tx);
    const int64_t n = extents(y, ty).second;
    Sums out(static_cast<size_t>(m * n));
    for (int64_t i = 0; i < m * n; ++i) {
      for (int64_t q = 0; q < k; ++q) {
        out[static_cast<size_t>(i)].add(at(x, tx, i / n, q), scale * at(y, ty, q, i % n));
      }
    }
    return out;
  }
  // out (M,N) += scale x (M,K) y (K,N)
  static void add_product(Sums& out, const Sums& x, const Operand& y, bool ty, double scale) {
    const auto [k, n] = extents(y, ty);
    for (int64_t i = 0; i < static_cast<int64_t>(out.size()); ++i) {
      for (int64_t q = 0; q < k; ++q) {
        out[static_cast<size_t>(i)].add(x[static_cast<size_t>(i / n * k + q)],
                                        scale * at(y, ty, q, i % n));
      }
    }
  }
  // out (M,N) += x (K,M)^T y (K,N)
  static void add_transposed(Sums& out, const Sums& x, const Operand& y) {
    const auto [k, n] = extents(y, false);
    const int64_t m = static_cast<int64_t>(out.size()) / n;
    for (int64_t i = 0; i < m * n; ++i) {
      for (int64_t q = 0; q < k; ++q) {
        out[static_cast<size_t>(i)].add(x[static_cast<size_t>(q * m + i / n)],
                                        at(y, false, q, i % n));
      }
    }
  }
  static void add(Sums& out, const Sums& more, double scale = 1) {
    for (size_t i = 0; i < out.size(); ++i) out[i].add(more[i], scale);
  }

  // Whether part p has a start, part p + 1, and bf16 computes both by its change, s (dB A + B0 dA)
  // with rounded factors: A, dA, s dB, s B0, x A^T, x dA^T and the like are rounded once each.
  bool changes(size_t p) const {
    if (!std::is_same_v<T, bf16> || p + 1 >= case_.parts.size()) return false;
    return case_.parts[p + 1].start;
  }
  // Part p less part p + 1, in f32 as the kernel forms it.
  Operand& difference(const std::vector<Array>& factors, size_t p) const {
    const Operand &now = *factors[p], &start = *factors[p + 1];
    const View v = now.host_view();
    difference_ = const_cast<DeviceTest&>(t_).template empty<A>({v.shape[0], v.shape[1]});
    for (int64_t i = 0; i < now.size(); ++i) difference_->set(i, now.host(i) - start.host(i));
    return *difference_;
  }
  // The parts of a linear, added to its y.
  void add_parts(Sums& y, int32_t linear) const {
    for (size_t p = 0; p < a_.size(); ++p) {
      if (case_.parts[p].linear != linear) continue;
      if (!changes(p)) {
        add_product(y, u(p), *b_[p], true, case_.parts[p].scale);
        continue;
      }
      Sums change(y.size());
      add_product(change, u(p), difference(b_, p), true, case_.parts[p].scale);
      add_product(change, product(*adapted(), false, difference(a_, p), true), *b_[p + 1], true,
                  case_.parts[p].scale);
      add(y, rounded(change, 4));  // two factors, their U, and the low-rank sum beside cuBLAS
      ++p;
    }
  }
  // dU = v1 + v2 of a change, v1 = s dY dB, v2 = s dY B0; two roundings with dU's own.
  Sums change_du(size_t p) const {
    Sums sum = v(p, difference(b_, p));
    add(sum, v(p, *b_[p + 1]));
    return rounded(sum, 2);
  }
  void add_change_dx(Sums& dx, size_t p) const {
    Sums change(dx.size());
    add_product(change, v(p, difference(b_, p)), *a_[p], false, 1);
    add_product(change, v(p, *b_[p + 1]), difference(a_, p), false, 1);
    add(dx, rounded(change, 4));
  }
  Sums v(size_t p, const Operand& b) const {
    const Part& part = case_.parts[p];
    return product(*dy_[static_cast<size_t>(part.linear)], false, b, false, part.scale);
  }

  Sums u(size_t p) const { return product(*adapted(), false, *a_[p], true); }
  Sums du(size_t p) const {
    const Part& part = case_.parts[p];
    return product(*dy_[static_cast<size_t>(part.linear)], false, *b_[p], false, part.scale);
  }
  // The backward pass reads u.
  void set_u() {
    for (size_t p = 0; p < a_.size(); ++p) {
      const Sums sums = u(p);
      for (size_t i = 0; i < sums.size(); ++i) u_[p]->set(static_cast<int64_t>(i), sums[i].value);
    }
  }

  Case case_;
  DeviceTest t_;
  Array x_, xa_, dx_, dxa_;
  std::vector<Array> w_, change_, bias_, dy_, y_, scale_, unscaled_, a_, b_, u_, da_, db_;
  mutable Array difference_;
};

template <typename T>
void check_case(const Case& c) {
  CAPTURE(c.rows);
  CAPTURE(c.in);
  Fixture<T> fixture(c);
  fixture.check_forward();
  fixture.check_backward(true);
  fixture.check_backward(false);
  if (c.outs.size() > 1) fixture.check_backward(true, 0);
}

template <typename T>
void check_all() {
  check_case<T>({1, 1, {1}, {{0, 1, 1.0}}});
  check_case<T>({33, 31, {48}, {}});
  check_case<T>({1, 64, {33}, {{0, 4, 2.0}}});
  check_case<T>({67, 96, {64, 31, 33}, {{0, 16, 2.0}, {1, 3, 0.5}, {2, 16, 2.0}}});
  check_case<T>({35, 40, {65}, {{0, 48, 0.25}}});                           // R > in
  check_case<T>({70, 64, {32}, {{0, 8, 1.0}, {0, 8, -1.0}}, false});        // two parts
  check_case<T>({70, 64, {32}, {{0, 8, 1.0}, {0, 8, -1.0, true}}, false});  // one with a start
  check_case<T>({35,
                 33,
                 {65, 31},
                 {{0, 5, 2.0}, {0, 5, -2.0, true}, {0, 3, 0.5}, {1, 5, 3.0}, {1, 5, -3.0, true}}});
  check_case<T>({33, 32, {64}, {{0, 8, 0.5}, {0, 8, -0.5, true}}, false, true});
  check_case<T>({70, 33, {31, 17}, {{1, 5, 3.0}}, true, true});
  check_case<T>({64, 32, {32}, {{0, 2, 1.0}}, false, true});
  check_case<T>({0, 32, {31}, {{0, 2, 1.0}}});
  check_case<T>({33, 31, {48}, {}, true, false, true});
  check_case<T>(
      {67, 96, {64, 31}, {{0, 16, 2.0}, {0, 16, -2.0, true}, {1, 3, 0.5}}, true, true, true});
  check_case<T>({35, 33, {31}, {{0, 4, 2.0}, {0, 3, 0.5}}, false, false, true});
  check_case<T>({33, 31, {48}, {}, true, false, false, true});
  check_case<T>({1, 64, {33, 31}, {{0, 4, 2.0}}, false, false, true, true});
  check_case<T>({67, 96, {64, 31, 33}, {{0, 16, 2.0}, {1, 3, 0.5}}, true, true, true, true});
}

// Sets BALORA_CUDA_LINEAR while it lives.
class Choice {
 public:
  explicit Choice(const char* way) { setenv("BALORA_CUDA_LINEAR", way, 1); }
  ~Choice() { unsetenv("BALORA_CUDA_LINEAR"); }
};

TEST_CASE_TEMPLATE("linear in f32, f64 and f16", T, float, double, f16) {
  check_all<T>();
}

TEST_CASE("linear in bf16 by the own kernel") {
  const Choice own("own");
  check_all<bf16>();
  for (const int64_t rank : {1, 5, 17}) {
    CAPTURE(rank);
    check_case<bf16>({31, 33, {31}, {{0, rank, 0.5}, {0, 3, 2.0}, {0, 3, -2.0}}});
    check_case<bf16>({33, 1, {1, 33}, {{0, 3, 0.5}, {1, rank, 2.0}, {1, 4, 1.0}}});
  }
}

TEST_CASE("linear in bf16 by cuBLAS") {
  const Choice cublas("cublas");
  check_all<bf16>();
}

TEST_CASE("linear in bf16 with more terms than a launch takes") {
  Case c = {33, 40, {31}, {}};
  for (int i = 0; i < 9; ++i) c.parts.push_back({0, 2 + i % 3, 0.5});
  check_case<bf16>(c);
}

// The emulated device has four multiprocessors: four tiles of 128 are enough for the large kernel.
TEST_CASE("linear in bf16 in tiles of 128") {
  const Choice own("own");
  Fixture<bf16> fixture({131, 72, {136}, {{0, 8, 0.5}}});
  fixture.check_forward();
  fixture.check_backward(true);
}

TEST_CASE("low-rank parts that cancel leave the base alone to the last bit") {
  for (const char* way : {"own", "cublas"}) {
    CAPTURE(way);
    const Choice choice(way);
    const Case plain = {70, 96, {65}, {}, true};
    for (const bool start : {false, true}) {
      Case pair = plain;
      pair.parts = {{0, 24, 1.5}, {0, 24, -1.5, start}};
      Fixture<bf16> with(pair), without(plain);
      with.repeat_first_part();
      CHECK(with.forward() == without.forward());
    }
  }
}

// The change is 2^-12 of the parts: to be right in it means to lose nothing of B A - B0 A0.
TEST_CASE("a part with a start is off by roundings of its change only") {
  for (const char* way : {"own", "cublas"}) {
    CAPTURE(way);
    const Choice choice(way);
    Fixture<bf16> fixture({70, 96, {65}, {{0, 24, 1.5}, {0, 24, -1.5, true}}, false});
    fixture.move_pair(0x1p-12);
    const std::vector<double> y = fixture.forward();
    const auto want = fixture.low_rank_y();
    double error = 0, size = 0;
    for (size_t i = 0; i < y.size(); ++i) {
      error += (y[i] - want[i].value) * (y[i] - want[i].value);
      size += want[i].value * want[i].value;
    }
    CHECK(size > 0);
    CHECK(std::sqrt(error) < 0x1p-8 * std::sqrt(size));
    fixture.check_forward();
    fixture.check_backward(true);
  }
}

TEST_CASE("a weight of an unknown format is refused") {
  DeviceTest t;
  const Array x = t.random<bf16>({3, 8}), w = t.random<bf16>({5, 8}), y = t.empty<bf16>({3, 5});
  CHECK(t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
    const LinearOperands linear = {.weight = {.dense = view(w), .format = 7}, .y = view(y)};
    return call(k.linear_forward, ctx, {.x = view(x), .linears = &linear, .count = 1});
  }) != 0);
  CHECK(t.error() == "no dense weight, but one of format 7");
}

TEST_CASE("an inner extent that 32 bits do not hold is refused, not cut off") {
  constexpr int64_t kColumns = (int64_t{1} << 32) + 8;
  for (const bool by_rows : {false, true}) {
    DeviceTest t;
    const Array x = t.random<bf16>({3, 8}), w = t.random<bf16>({5, 8}), y = t.empty<bf16>({3, 5});
    CHECK(t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
      View wide_x = *view(x), wide_w = *view(w);
      for (View* wide : {&wide_x, &wide_w}) wide->shape[1] = wide->stride[0] = kColumns;
      const LinearOperands linear = {.weight = {.dense = &wide_w}, .y = view(y)};
      return call(
          k.linear_forward, ctx,
          {.x = &wide_x, .linears = &linear, .count = 1, .batch_invariant = by_rows ? 1 : 0});
    }) != 0);
    CHECK(t.error() ==
          "an inner extent of 4294967304 is not from 0 to 2147483647, the sizes that this kernel "
          "takes");
  }
}

TEST_CASE("a way of summing that is none is refused") {
  const Choice choice("fast");
  DeviceTest t;
  const Array x = t.random<bf16>({3, 8}), w = t.random<bf16>({5, 8}), y = t.empty<bf16>({3, 5});
  CHECK(t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
    const LinearOperands linear = {.weight = {.dense = view(w)}, .y = view(y)};
    return call(k.linear_forward, ctx, {.x = view(x), .linears = &linear, .count = 1});
  }) != 0);
  CHECK(t.error() == "BALORA_CUDA_LINEAR must be own or cublas, got fast");
}

template <typename T>
void check_weight_backward() {
  for (const int64_t n : {int64_t{0}, int64_t{1}, int64_t{123}}) {
    CAPTURE(n);
    DeviceTest t;
    using A = Acc<T>;
    const Array dy = t.random<T>({n, 33}), x = t.random<T>({n, 31});
    const Array dweight = t.empty<A>({33, 31}), dbias = t.empty<A>({33});
    t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      return call(k.linear_weight_backward, ctx,
                  {.dy = view(dy), .x = view(x), .dweight = view(dweight), .dbias = view(dbias)});
    });
    const double tolerance = std::is_same_v<T, double> ? 1e-13 : 2e-5;
    t.check_close(dweight, tolerance);
    t.check_close(dbias, tolerance);
    t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      return call(k.linear_weight_backward, ctx, {.dy = view(dy), .dbias = view(dbias)});
    });
    t.check_close(dbias, tolerance);
  }
}

TEST_CASE_TEMPLATE("linear_weight_backward sums in the accumulator's type", T, BALORA_FLOAT_TYPES) {
  check_weight_backward<T>();
}

}  // namespace
