// Products in int8: every core against the plain loops, bit for bit; the format against its formula
// and the rotation against the Hadamard matrix; the linears' kernels against products of
// the codes in f64, for every type, with low-rank parts, odd sizes and weights that are not frozen,
// and with the codes of their input given; rows that are kept in int8 and decoded.
#include "kernels/cpu/products/int8.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>

#include "kernels/cpu/runtime/cpu_kernels.h"
#include "support/kernel_test.h"

namespace balora::test {
namespace {

struct Codes {
  std::vector<uint8_t> a;
  std::vector<int8_t> b;
  std::vector<int32_t> offset;
  std::vector<float> row_scale, scale;
  int64_t steps;

  // `extreme`: all products are 127 x 127 or its negative.
  Codes(int64_t step_count, std::mt19937& random, bool extreme) : steps(step_count) {
    std::uniform_int_distribution<int> code(-127, 127);
    const auto draw = [&] { return extreme ? (code(random) > 0 ? 127 : -127) : code(random); };
    for (int64_t i = 0; i < kInt8Rows * steps * kInt8K; ++i) {
      a.push_back(static_cast<uint8_t>(draw() + 128));
    }
    for (int64_t i = 0; i < steps * kInt8StepBytes; ++i) b.push_back(static_cast<int8_t>(draw()));
    std::uniform_real_distribution<float> real(-2, 2);
    for (int64_t j = 0; j < kInt8Columns; ++j) {
      offset.push_back(code(random) * 1000), scale.push_back(real(random));
    }
    for (int64_t r = 0; r < kInt8Rows; ++r) row_scale.push_back(real(random));
  }
  Int8Block block(bool scaled) const {
    return {.a = a.data(),
            .lda = steps * kInt8K,
            .b = b.data(),
            .steps = steps,
            .offset = offset.data(),
            .row_scale = row_scale.data(),
            .scale = scaled ? scale.data() : nullptr};
  }
};

// Calls body(core) for those that this process can run.
template <typename Body>
void for_cores(const Body& body) {
  for (const Core<Int8Multiply>& core : int8_cores()) {
    if (!core.name) continue;  // one of another processor
    if (platform::cpu().uses(core.needs)) {
      body(core);
    } else {
      MESSAGE("not run: this process has no instructions for ", std::string(core.name));
    }
  }
}

std::vector<uint32_t> multiplied(Int8Multiply multiply, const Int8Block& block, int64_t rows,
                                 bool accumulate) {
  constexpr int64_t kLd = 40;
  std::vector<float> c(kInt8Rows * kLd);
  for (size_t i = 0; i < c.size(); ++i) c[i] = static_cast<float>(i) / 3;
  multiply(block, rows, c.data(), kLd, accumulate);
  std::vector<uint32_t> bits;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < kInt8Columns; ++j) {
      bits.push_back(std::bit_cast<uint32_t>(c[static_cast<size_t>(r * kLd + j)]));
    }
  }
  return bits;
}

// The codes of a vector and its scale, by the formula.
struct Quantised {
  std::vector<int> codes;
  float scale;

  explicit Quantised(const std::vector<float>& v) {
    float largest = 0;
    for (const float value : v) largest = std::max(largest, std::abs(value));
    scale = largest / 127;
    const float factor = largest > 0 ? 127 / largest : 0;
    for (const float value : v) {
      const int code = static_cast<int>(std::nearbyint(value * factor));
      codes.push_back(std::clamp(code, -127, 127));
    }
  }
};

int64_t rotation_of(int64_t in) {
  return in % 64 == 0 ? 64 : in % 32 == 0 ? 32 : 0;
}

// A row of a matrix in f32, scaled and rotated.
template <typename T>
std::vector<float> row_of(const Array<T>& x, int64_t row, int64_t count,
                          const std::vector<float>* scale, int64_t rotation) {
  std::vector<float> v;
  for (int64_t i = 0; i < count; ++i) {
    const auto value = static_cast<float>(x[row * count + i]);
    v.push_back(scale ? value * (*scale)[static_cast<size_t>(i)] : value);
  }
  rotate_blocks(v.data(), count, rotation);
  return v;
}

// A sum and that of its terms' magnitudes.
struct Total {
  double value = 0, magnitude = 0;
  void add(double term) { value += term, magnitude += std::abs(term); }
};

struct Int8Case {
  int64_t rows, in;
  std::vector<int64_t> outs;
  int64_t rank = 0;  // of a part of each linear; 0: none
  bool bias = false;
  size_t trained = 99;  // the linear whose weight is not frozen
};

// The same bits where the codes of x are given.
template <typename T>
void check_given_codes(TestContext& ctx, const View& x, const std::vector<LinearOperands>& linears,
                       const std::vector<Array<T>>& y) {
  const int64_t m = x.shape[0], in = x.shape[1];
  const Int8Rows rows = quantise_rows(ctx, x.data, x.dtype, m, in, nullptr, rotation_of(in));
  View codes = x, scales{};
  codes.data = const_cast<uint8_t*>(rows.q), codes.dtype = BALORA_U8, codes.shape[1] = rows.ld;
  scales.data = const_cast<float*>(rows.scale), scales.dtype = BALORA_F32;
  std::vector<std::vector<double>> before;
  for (const Array<T>& each : y) before.push_back(each.values());
  REQUIRE(linear_forward_kernel(ctx, {.x = &x,
                                      .linears = linears.data(),
                                      .count = static_cast<int32_t>(linears.size()),
                                      .int8 = BALORA_INT8_ROTATED,
                                      .x_codes = &codes,
                                      .x_scales = &scales}) == 0);
  for (size_t l = 0; l < y.size(); ++l) CHECK(y[l].values() == before[l]);
}

// y and dx of a group, in products of codes and the parts in f64.
template <typename T>
void check_linears(const Int8Case& c, int32_t forward, int32_t backward) {
  CAPTURE(c.rows);
  CAPTURE(c.in);
  CAPTURE(backward);
  TestContext ctx;
  std::mt19937 random(11);
  const auto count = c.outs.size();
  Array<T> x({c.rows, c.in}, random), dx({c.rows, c.in});
  std::vector<Array<T>> w, y, dy, bias;
  std::vector<Array<float>> a, b, u;
  std::vector<std::array<balora_slot, BALORA_SLOTS>> slots(count);
  for (const int64_t out : c.outs) {
    w.emplace_back(std::vector<int64_t>{out, c.in}, random, 0.5);
    y.emplace_back(std::vector<int64_t>{c.rows, out});
    dy.emplace_back(std::vector<int64_t>{c.rows, out}, random);
    bias.emplace_back(std::vector<int64_t>{out}, random);
    a.emplace_back(std::vector<int64_t>{c.rank, c.in}, random);
    b.emplace_back(std::vector<int64_t>{out, c.rank}, random);
    u.emplace_back(std::vector<int64_t>{c.rows, c.rank});
  }
  const View xv = x.view(), dxv = dx.view();
  std::vector<View> wv, yv, dyv, bv, av, fv, uv;
  for (size_t l = 0; l < count; ++l) {
    wv.push_back(w[l].view());
    if (l != c.trained) wv.back().slots = slots[l].data();
    yv.push_back(y[l].view()), dyv.push_back(dy[l].view()), bv.push_back(bias[l].view());
    av.push_back(a[l].view()), fv.push_back(b[l].view()), uv.push_back(u[l].view());
  }
  std::vector<LowRankOperands> parts;
  for (size_t l = 0; l < count; ++l) {
    parts.push_back({.a = &av[l], .b = &fv[l], .u = &uv[l], .scale = 0.5});
  }
  std::vector<LinearOperands> linears;
  for (size_t l = 0; l < count; ++l) {
    linears.push_back({.weight = {.dense = &wv[l]},
                       .bias = c.bias ? &bv[l] : nullptr,
                       .y = &yv[l],
                       .parts = &parts[l],
                       .part_count = c.rank > 0 ? 1 : 0});
  }
  const auto n = static_cast<int32_t>(count);
  REQUIRE(linear_forward_kernel(
              ctx, {.x = &xv, .linears = linears.data(), .count = n, .int8 = forward}) == 0);
  if (forward == BALORA_INT8_ROTATED) check_given_codes(ctx, xv, linears, y);
  for (size_t l = 0; l < count; ++l) linears[l].y = &dyv[l];
  REQUIRE(linear_backward_kernel(
              ctx, {.dx = &dxv, .linears = linears.data(), .count = n, .int8 = backward}) == 0);

  // Factors of parts lose 2^-15 of their products, sums of f32 less.
  const auto check = [](double got, const Total& want, const char* what, int64_t i) {
    const double allowed =
        epsilon_of<T>() * std::abs(want.value) + 0x1p-15 * want.magnitude + 1e-30;
    const bool close = std::abs(got - want.value) <= allowed;
    CHECK_MESSAGE(close, what, "[", i, "]: got ", got, ", expected ", want.value, ", allowed ",
                  allowed);
  };
  const int64_t rotation = rotation_of(c.in), back = backward == BALORA_INT8_ROTATED ? rotation : 0;
  std::vector<Total> gradient(static_cast<size_t>(c.rows * c.in));
  for (size_t l = 0; l < count; ++l) {
    const int64_t out = c.outs[l];
    const auto is_int8 = [&](int32_t form) { return form != BALORA_INT8_OFF && l != c.trained; };
    const auto weight_rows = [&](int64_t block) {
      std::vector<Quantised> rows;
      for (int64_t o = 0; o < out; ++o) rows.emplace_back(row_of(w[l], o, c.in, nullptr, block));
      return rows;
    };
    const std::vector<Quantised> wf = weight_rows(rotation), wb = weight_rows(back);
    std::vector<float> scales;
    for (const Quantised& row : wb) scales.push_back(row.scale);
    for (int64_t i = 0; i < c.rows; ++i) {
      const Quantised qx(row_of(x, i, c.in, nullptr, rotation));
      for (int64_t o = 0; o < out; ++o) {
        const Quantised& row = wf[static_cast<size_t>(o)];
        Total sum;
        for (int64_t k = 0; k < c.in; ++k) {
          const auto at = static_cast<size_t>(k);
          sum.add(is_int8(forward) ? double{qx.scale} * row.scale * qx.codes[at] * row.codes[at]
                                   : x[i * c.in + k] * w[l][o * c.in + k]);
        }
        for (int64_t r = 0; r < c.rank; ++r) {
          for (int64_t k = 0; k < c.in; ++k) {
            sum.add(0.5 * x[i * c.in + k] * a[l][r * c.in + k] * b[l][o * c.rank + r]);
          }
        }
        if (c.bias) sum.add(bias[l][o]);
        check(y[l][i * out + o], sum, "y", i * out + o);
      }
      const Quantised qg(row_of(dy[l], i, out, &scales, 0));
      std::vector<float> base(static_cast<size_t>(c.in));
      Total largest;
      for (int64_t k = 0; k < c.in; ++k) {
        Total sum;
        for (int64_t o = 0; o < out; ++o) {
          const auto at = static_cast<size_t>(o);
          sum.add(is_int8(backward)
                      ? double{qg.scale} * qg.codes[at] * wb[at].codes[static_cast<size_t>(k)]
                      : dy[l][i * out + o] * w[l][o * c.in + k]);
        }
        base[static_cast<size_t>(k)] = static_cast<float>(sum.value);
        largest.magnitude = std::max(largest.magnitude, sum.magnitude);
      }
      if (is_int8(backward)) rotate_blocks(base.data(), c.in, back);
      for (int64_t k = 0; k < c.in; ++k) {
        Total& sum = gradient[static_cast<size_t>(i * c.in + k)];
        sum.add(base[static_cast<size_t>(k)]), sum.magnitude += largest.magnitude;
        for (int64_t r = 0; r < c.rank; ++r) {
          for (int64_t o = 0; o < out; ++o) {
            sum.add(0.5 * dy[l][i * out + o] * b[l][o * c.rank + r] * a[l][r * c.in + k]);
          }
        }
      }
    }
  }
  for (int64_t i = 0; i < dx.size(); ++i) {
    check(dx[i], gradient[static_cast<size_t>(i)], "dx", i);
  }
  for (auto& own : slots) {
    for (balora_slot& slot : own) {
      if (slot.data) slot.destroy(slot.data);
    }
  }
}

template <typename T>
void check_all_linears() {
  const Int8Case cases[] = {
      {1, 64, {32}},           {33, 64, {48, 17}, 4, true}, {70, 96, {64, 31, 33}, 16},
      {5, 31, {9}, 3},         {40, 192, {100}, 5, true},   {64, 128, {64, 32}, 8, false, 1},
      {160, 64, {96, 160}, 2},  // threads take over each other's rows
  };
  for (const Int8Case& c : cases) {
    check_linears<T>(c, BALORA_INT8_ROTATED, BALORA_INT8_ROTATED);
    check_linears<T>(c, BALORA_INT8_OFF, BALORA_INT8_PLAIN);
  }
}

}  // namespace

TEST_CASE("int8: every core equals the plain loops bit for bit") {
  std::mt19937 random(5);
  for (const bool extreme : {false, true}) {
    for (const int64_t steps : {0, 1, 3}) {
      const Codes codes(steps, random, extreme);
      for (int64_t rows = 1; rows <= kInt8Rows; ++rows) {
        for (const bool scaled : {false, true}) {
          const Int8Block block = codes.block(scaled);
          for_cores([&](const Core<Int8Multiply>& core) {
            CAPTURE(core.name);
            CAPTURE(rows);
            CHECK(multiplied(core.run, block, rows, scaled) ==
                  multiplied(int8_cores().back().run, block, rows, scaled));
          });
        }
      }
    }
  }
}

TEST_CASE("int8: sums that pass 2^31 with the values plus 128 wrap to the right ones") {
  constexpr int64_t kSteps = 1280;  // 81,920 of k: (127 + 128) 127 k is above 2^31, 127^2 k below
  std::mt19937 random(1);
  Codes codes(kSteps, random, true);
  std::fill(codes.a.begin(), codes.a.end(), uint8_t{255});
  std::fill(codes.b.begin(), codes.b.end(), int8_t{127});
  std::fill(codes.offset.begin(), codes.offset.end(), static_cast<int32_t>(-128 * 127 * 81920LL));
  std::fill(codes.row_scale.begin(), codes.row_scale.end(), 1.0F);
  for_cores([&](const Core<Int8Multiply>& core) {
    const auto bits = multiplied(core.run, codes.block(false), 1, false);
    CHECK(std::bit_cast<float>(bits[0]) == 127.0F * 127 * 81920);
  });
}

TEST_CASE("int8: a rotation is the Hadamard matrix over the root of its size, its own inverse") {
  std::mt19937 random(3);
  std::uniform_real_distribution<float> real(-1, 1);
  for (const int64_t size : {32, 64}) {
    std::vector<float> v(static_cast<size_t>(3 * size));
    for (float& value : v) value = real(random);
    std::vector<float> rotated = v;
    rotate_blocks(rotated.data(), 3 * size, size);
    for (int64_t i = 0; i < 3 * size; ++i) {
      double want = 0;
      for (int64_t j = 0; j < size; ++j) {
        const bool negative = std::popcount(static_cast<uint64_t>(i % size & j)) % 2 == 1;
        want += (negative ? -1.0 : 1.0) * v[static_cast<size_t>(i / size * size + j)];
      }
      want /= std::sqrt(static_cast<double>(size));
      CHECK(std::abs(rotated[static_cast<size_t>(i)] - want) < 1e-6);
    }
    rotate_blocks(rotated.data(), 3 * size, size);
    for (size_t i = 0; i < v.size(); ++i) CHECK(std::abs(rotated[i] - v[i]) < 1e-6);
  }
}

TEST_CASE("int8: rows are quantised half to even, zeros and tiny ones to zeros, others say NaN") {
  TestContext ctx;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr int64_t kWidth = 6;
  const std::vector<std::vector<float>> rows = {{127, 0.5F, 1.5F, 2.5F, -0.5F, -1.5F},
                                                {0, 0, 0, 0, 0, 0},
                                                {-3, 1, 2, 3, 0.01F, -0.02F},
                                                {0x1p-140F, 0, 0, 0, 0, 0},
                                                {1, kInfinity, 0, 0, 0, 0},
                                                {1, NAN, 0, 0, 0, 0}};
  std::vector<float> x;
  for (const auto& row : rows) x.insert(x.end(), row.begin(), row.end());
  const auto m = static_cast<int64_t>(rows.size());
  const Int8Rows q = quantise_rows(ctx, x.data(), BALORA_F32, m, kWidth, nullptr, 0);
  REQUIRE(q.ld == kInt8K);
  for (int64_t i = 0; i < m; ++i) {
    const bool tiny = i == 3, broken = i > 3;
    const Quantised want(rows[static_cast<size_t>(i)]);
    if (broken) {
      CHECK(std::isnan(q.scale[i]));
    } else {
      CHECK(q.scale[i] == (tiny ? 0 : want.scale));
    }
    for (int64_t j = 0; j < q.ld; ++j) {
      const bool there = j < kWidth && !tiny && !broken;
      CHECK(q.q[i * q.ld + j] - 128 == (there ? want.codes[static_cast<size_t>(j)] : 0));
    }
  }
}

namespace {

// An activation's codes, scales and values again, by the formula.
template <typename T>
void check_kept_rows(int64_t m, int64_t width) {
  CAPTURE(m);
  CAPTURE(width);
  TestContext ctx;
  std::mt19937 random(21);
  Array<T> x({m, width}, random, 3), again({m, width});
  Array<float> scales({int8_padded_rows(m)});
  std::vector<uint8_t> codes(static_cast<size_t>(scales.size() * int8_padded_columns(width)), 7);
  View view{};
  view.data = codes.data(), view.dtype = BALORA_U8, view.ndim = 2;
  view.shape[0] = scales.size(), view.shape[1] = int8_padded_columns(width);
  view.stride[0] = view.shape[1], view.stride[1] = 1;
  const View xv = x.view(), sv = scales.view(), av = again.view();
  REQUIRE(quantize_rows_kernel(ctx, {.x = &xv, .codes = &view, .scales = &sv}) == 0);
  REQUIRE(dequantize_rows_kernel(ctx, {.codes = &view, .scales = &sv, .x = &av}) == 0);
  const int64_t rotation = rotation_of(width);
  for (int64_t i = 0; i < scales.size(); ++i) {
    if (i >= m) {
      CHECK(scales[i] == 0);
      continue;
    }
    const Quantised want(row_of(x, i, width, nullptr, rotation));
    CHECK(scales[i] == want.scale);
    std::vector<float> values;
    for (int64_t j = 0; j < view.shape[1]; ++j) {
      const int code = codes[static_cast<size_t>(i * view.shape[1] + j)] - 128;
      CHECK(code == (j < width ? want.codes[static_cast<size_t>(j)] : 0));
      if (j < width) values.push_back(want.scale * static_cast<float>(code));
    }
    rotate_blocks(values.data(), width, rotation);
    for (int64_t j = 0; j < width; ++j) {
      const double value = values[static_cast<size_t>(j)];
      CHECK(again[i * width + j] == to_double(from_double<T>(value)));
    }
  }
}

}  // namespace

TEST_CASE(
    "int8: rows that are kept are those of products, and decode to what the codes stand for") {
  for (const auto& [m, width] : {std::pair<int64_t, int64_t>{1, 1}, {5, 31}, {33, 96}, {3, 576}}) {
    check_kept_rows<float>(m, width);
    check_kept_rows<bf16>(m, width);
    check_kept_rows<f16>(m, width);
  }
}

TEST_CASE("int8: panels of both directions have every code at its place") {
  TestContext ctx;
  std::mt19937 random(9);
  for (const auto& [outs, ins] : {std::pair<int64_t, int64_t>{32, 64}, {70, 132}, {33, 31}}) {
    Array<float> w({outs, ins}, random);
    balora_slot slots[BALORA_SLOTS] = {};
    View view = w.view();
    view.slots = slots;
    const Int8Weight& copy = *Int8Weight::of(ctx, view, false);
    for (const Int8Matrix& b : {copy.forward(), copy.backward()}) {
      const int64_t panels = (b.n + 31) / 32;
      std::vector<int8_t> packed(static_cast<size_t>(panels * b.steps() * kInt8StepBytes), 99);
      pack_int8_panels(b, 0, panels, packed.data());
      for (int64_t j = 0; j < panels * 32; ++j) {
        int64_t sum = 0;
        for (int64_t i = 0; i < b.steps() * kInt8K; ++i) {
          const int64_t step = j / 32 * b.steps() + i / kInt8K, k = i % kInt8K;
          const int64_t at =
              step * kInt8StepBytes + j % 32 / 16 * 1024 + k / 4 * 64 + j % 16 * 4 + k % 4;
          const bool there = i < b.k && j < b.n;
          const int code = there ? b.q[i * b.k_stride + j * b.n_stride] : 0;
          CHECK(packed[static_cast<size_t>(at)] == code);
          sum += code;
        }
        CHECK(b.offset[j] == -128 * sum);
      }
    }
    slots[2].destroy(slots[2].data);
  }
}

TEST_CASE("int8: linears in both directions") {
  SUBCASE("f32") {
    check_all_linears<float>();
  }
  SUBCASE("bf16") {
    check_all_linears<bf16>();
  }
  SUBCASE("f16") {
    check_all_linears<f16>();
  }
}

TEST_CASE("int8: a weight in blocks is quantised from its decoded values") {
  constexpr int64_t kOut = 35, kIn = 64, kM = 3;
  balora_encoding sixteenths{
      "sixteenths", 1,
      [](const balora_encoding*, const void* data, int64_t first, int64_t count, float* values) {
        const auto* const codes = static_cast<const int8_t*>(data) + first;
        for (int64_t i = 0; i < count; ++i) values[i] = static_cast<float>(codes[i]) / 16;
      }};
  TestContext ctx;
  std::mt19937 random(4);
  std::uniform_int_distribution<int> code(-100, 100);
  std::vector<int8_t> codes;
  std::vector<double> decoded;
  for (int64_t i = 0; i < kOut * kIn; ++i) {
    codes.push_back(static_cast<int8_t>(code(random))), decoded.push_back(codes.back() / 16.0);
  }
  Array<bf16> x({kM, kIn}, random), w({kOut, kIn}, decoded), y({kM, kOut}), dx({kM, kIn});
  const View xv = x.view(), yv = y.view(), dxv = dx.view();
  const auto computed = [&](View weight) {
    balora_slot slots[BALORA_SLOTS] = {};
    weight.slots = slots;
    const LinearOperands linear = {.weight = weight_of(weight), .y = &yv};
    REQUIRE(linear_forward_kernel(
                ctx, {.x = &xv, .linears = &linear, .count = 1, .int8 = BALORA_INT8_ROTATED}) == 0);
    REQUIRE(linear_backward_kernel(
                ctx, {.dx = &dxv, .linears = &linear, .count = 1, .int8 = BALORA_INT8_ROTATED}) ==
            0);
    REQUIRE(slots[2].data != nullptr);
    slots[2].destroy(slots[2].data);
    return std::pair{y.values(), dx.values()};
  };
  const auto dense = computed(w.view());
  View in_blocks = w.view();
  in_blocks.data = codes.data(), in_blocks.encoding = &sixteenths;
  CHECK(computed(in_blocks) == dense);
}

TEST_CASE("int8: what cannot be computed in it is refused by name") {
  TestContext ctx;
  std::mt19937 random(2);
  Array<double> w({4, 32}, random), x({2, 32}, random), y({2, 4});
  balora_slot slots[BALORA_SLOTS] = {};
  View wv = w.view();
  const View xv = x.view(), yv = y.view();
  wv.slots = slots;
  LinearOperands linear = {.weight = {.dense = &wv}, .y = &yv};
  CHECK_THROWS_AS(linear_forward_kernel(
                      ctx, {.x = &xv, .linears = &linear, .count = 1, .int8 = BALORA_INT8_ROTATED}),
                  UnsupportedError);
}

}  // namespace balora::test
