// The emulated instructions against plain loops, and 16-bit conversions against the compiler's.
#include "instruction_kernels.h"

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <random>

#include "instructions.h"

namespace {

using instructions::Format;

// Small whole numbers: every product and sum is exact in every format.
std::vector<float> whole(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<float> out(count);
  for (float& value : out) value = static_cast<float>(static_cast<int>(random() % 17) - 8);
  return out;
}

std::vector<float> plain(const std::vector<float>& a, const std::vector<float>& b,
                         const std::vector<float>& d) {
  const size_t k = a.size() / 16;
  std::vector<float> out = d;
  for (size_t i = 0; i < 16; ++i) {
    for (size_t j = 0; j < 8; ++j) {
      for (size_t l = 0; l < k; ++l) out[i * 8 + j] += a[i * k + l] * b[l * 8 + j];
    }
  }
  return out;
}

TEST_CASE("mma multiplies in every format") {
  for (const Format format : {Format::kBf16, Format::kF16, Format::kTf32}) {
    const size_t k = format == Format::kTf32 ? 8 : 16;
    const auto a = whole(16 * k, 1), b = whole(8 * k, 2), d = whole(128, 3);
    CHECK(instructions::multiply(format, a, b, d) == plain(a, b, d));
  }
}

TEST_CASE("mma on tf32 ignores the low 13 bits") {
  std::vector<float> a(128, 0.0f), b(64, 0.0f);
  a[0] = std::bit_cast<float>(std::bit_cast<uint32_t>(3.0f) | 0x1fffu);
  b[0] = 1;
  CHECK(instructions::multiply(Format::kTf32, a, b, std::vector<float>(128, 0.0f))[0] == 3.0f);
}

TEST_CASE("ldmatrix, as it lies and transposed, fills mma's fragments") {
  const auto a = whole(256, 4), b = whole(128, 5);
  CHECK(instructions::multiply_from_shared(a, b) == plain(a, b, std::vector<float>(128, 0.0f)));
}

TEST_CASE("cp_async copies what is valid and zeros behind it, group by group") {
  std::vector<float> x(256);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i + 1);
  const auto some = instructions::copy_some({x.begin(), x.begin() + 128});
  for (size_t i = 0; i < 128; ++i) CHECK(some[i] == (i % 4 < i / 4 % 5 ? x[i] : 0.0f));
  const auto groups = instructions::copy_in_groups(x);
  for (size_t i = 0; i < 32; ++i) {
    CHECK(groups[i] == x[4 * (31 - i)]);
    CHECK(groups[32 + i] == x[4 * (63 - i)]);
  }
}

TEST_CASE("shuffles and votes") {
  const auto got = instructions::shuffles();
  for (int lane = 0; lane < 32; ++lane) {
    CAPTURE(lane);
    const float want[9] = {3.0f,
                           static_cast<float>(lane / 8 * 8 + 3),
                           static_cast<float>(lane ^ 5),
                           static_cast<float>(lane + 4 < 32 ? lane + 4 : lane),
                           static_cast<float>(lane % 16 >= 4 ? lane - 4 : lane),
                           11.0f,
                           1.0f,
                           0.0f,
                           7.0f};
    for (int i = 0; i < 9; ++i) CHECK(got[static_cast<size_t>(i * 32 + lane)] == want[i]);
  }
}

TEST_CASE("a part of a warp may shuffle by itself") {
  const auto got = instructions::partial_warps();
  for (size_t lane = 0; lane < 32; ++lane) {
    const auto value = [](size_t of) { return of < 8 ? 28.0f : static_cast<float>(of); };
    CHECK(got[lane] == value(lane));
    CHECK(got[32 + lane] == value(lane ^ 16));
  }
}

TEST_CASE("f16 converts as the compiler's type does") {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = std::bit_cast<_Float16>(static_cast<uint16_t>(bits));
    const float got = emulator::half_to_float(static_cast<uint16_t>(bits));
    const auto want = static_cast<float>(half);
    if (std::isnan(want) ? !std::isnan(got) : got != want) FAIL("half bits ", bits);
  }
  std::mt19937 random(6);
  for (int i = 0; i < 200000; ++i) {
    // Whole range of exponents that matter, and ties between neighbours.
    const int exponent = static_cast<int>(random() % 44) - 27;
    float value = std::ldexp(1.0f + static_cast<float>(random() % 4096) / 4096.0f, exponent);
    if (i % 2) value = -value;
    const auto want = std::bit_cast<uint16_t>(static_cast<_Float16>(value));
    if (emulator::float_to_half(value) != want) FAIL("to half: ", value);
  }
}

TEST_CASE("bf16 rounds to the nearest, ties to even") {
  std::mt19937 random(7);
  const auto widen = [](uint32_t bits) { return double{std::bit_cast<float>(bits << 16)}; };
  for (int i = 0; i < 200000; ++i) {
    uint32_t bits = static_cast<uint32_t>(random());
    if (i % 3 == 0) bits = (bits & 0xffff0000u) | 0x8000u;
    const auto value = std::bit_cast<float>(bits);
    if (!std::isfinite(value) || (bits >> 16 & 0x7fff) >= 0x7f7f) continue;
    const uint32_t low = bits >> 16, high = low + 1;
    const double below = std::abs(value - widen(low)), above = std::abs(widen(high) - value);
    const uint32_t want = below < above || (below == above && low % 2 == 0) ? low : high;
    if (emulator::float_to_bf16(value) != want) FAIL("to bf16: ", value);
  }
  CHECK(emulator::float_to_bf16(INFINITY) == 0x7f80);
  CHECK((emulator::float_to_bf16(NAN) & 0x7fff) > 0x7f80);
}

}  // namespace
