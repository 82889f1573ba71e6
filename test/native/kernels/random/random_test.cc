// Random tensors and dropout: the moments of their distributions, their ranges, and the same
// numbers for any number of threads and in any part of a tensor.
#include <cmath>
#include <cstring>

#include "kernels/cpu/random/philox_words.h"
#include "kernels/shared/philox.h"
#include "support/kernel_test.h"

namespace {

using namespace balora;
using namespace balora::test;

constexpr uint64_t kSeed = 7, kStream = 3;
constexpr int64_t kMany = 100'000;

template <typename T>
Array<T> uniform(int64_t n, double low, double high, int threads = 2) {
  TestContext ctx(threads);
  Array<T> y({n});
  const View vy = y.view();
  REQUIRE(random_uniform_kernel(
              ctx, {.y = &vy, .seed = kSeed, .stream = kStream, .low = low, .high = high}) == 0);
  return y;
}

template <typename T>
Array<T> normal(int64_t n, int threads = 2) {
  TestContext ctx(threads);
  Array<T> y({n});
  const View vy = y.view();
  REQUIRE(random_normal_kernel(
              ctx, {.y = &vy, .seed = kSeed, .stream = kStream, .mean = 1, .deviation = 2}) == 0);
  return y;
}

template <typename T>
Array<T> dropped(Array<T>& x, double p, int threads = 2) {
  TestContext ctx(threads);
  Array<T> y({x.size()});
  const View vx = x.view(), vy = y.view();
  REQUIRE(dropout_kernel(ctx, {.x = &vx, .y = &vy, .seed = kSeed, .stream = kStream, .p = p}) == 0);
  return y;
}

Array<int64_t> words(int64_t n, int threads = 2) {
  TestContext ctx(threads);
  Array<int64_t> y({n});
  const View vy = y.view();
  REQUIRE(random_words_kernel(ctx, {.y = &vy, .seed = kSeed, .stream = kStream}) == 0);
  return y;
}

struct Moments {
  double mean, variance;
};

template <typename T>
Moments moments(const Array<T>& values) {
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < values.size(); ++i) sum += values[i];
  const double mean = sum / static_cast<double>(values.size());
  for (int64_t i = 0; i < values.size(); ++i) squares += std::pow(values[i] - mean, 2);
  return {mean, squares / static_cast<double>(values.size())};
}

// Six deviations of the mean of kMany values that have this one.
double allowed(double deviation) {
  return 6 * deviation / std::sqrt(static_cast<double>(kMany));
}

template <typename T>
bool same_beginning(const Array<T>& part, const Array<T>& whole) {
  return std::memcmp(part.data(), whole.data(), static_cast<size_t>(part.size()) * sizeof(T)) == 0;
}

TEST_CASE("random: words drawn together are those of their blocks") {
  constexpr uint64_t kCarry = uint64_t{1} << 32, kLong = 0x123456789abcdef0u;
  for (const uint64_t first :
       {uint64_t{0}, uint64_t{5}, kCarry - 7, kCarry * 9 - 64, ~uint64_t{0} - 63}) {
    for (const int blocks : {1, 15, 16, 17, kWordBlocks}) {
      for (const auto& [seed, stream] : {std::pair(kSeed, kStream), std::pair(kLong, ~kLong)}) {
        alignas(64) uint32_t words[4 * kWordBlocks];
        draw_words(seed, stream, first, blocks, words);
        for (int b = 0; b < blocks; ++b) {
          const PhiloxBlock want = philox(seed, first + static_cast<uint64_t>(b), stream);
          for (size_t j = 0; j < 4; ++j) REQUIRE(words[4 * static_cast<size_t>(b) + j] == want[j]);
        }
      }
    }
  }
}

TEST_CASE_TEMPLATE("random: uniforms fill their range evenly", T, float, bf16, f16, double) {
  const Array<T> y = uniform<T>(kMany, -1, 3);
  for (int64_t i = 0; i < y.size(); ++i) REQUIRE((y[i] >= -1 && y[i] < 3));
  const Moments found = moments(y);
  const double rounding = 4 * epsilon_of<T>();  // downwards, by less than a step of the type
  CHECK(std::abs(found.mean - 1) < allowed(4 / std::sqrt(12.0)) + rounding);
  CHECK(std::abs(found.variance - 16.0 / 12) < allowed(4 / std::sqrt(12.0) * 2) + 4 * rounding);
}

// The share of the width is rounded before it is added, on all processors. Here it is not exact,
// and one share cancels the lower bound, so that of a fused sum something else would be left.
TEST_CASE_TEMPLATE("random: uniforms have the bits of their definition", T, float, bf16, f16,
                   double) {
  constexpr double kLow = -0.1, kHigh = 0.156;
  constexpr int kBits = std::is_same_v<T, float>  ? kUniformBitsF32
                        : std::is_same_v<T, bf16> ? kUniformBitsBf16
                                                  : kUniformBitsF16;
  const Array<T> y = uniform<T>(kMany, kLow, kHigh);
  constexpr bool kDouble = std::is_same_v<T, double>;
  const Array<int64_t> from = words(2 * kMany);
  const auto word = [&](int64_t i) { return static_cast<uint32_t>(from.data()[i]); };
  for (int64_t i = 0; i < kMany; ++i) {
    const double u =
        kDouble ? philox_double(word(2 * i), word(2 * i + 1)) : philox_uniform(word(i), kBits);
    volatile double share = (kHigh - kLow) * u;
    const double value = kLow + share;
    const T want = from_double<T>(static_cast<Acc<T>>(value < kHigh ? value : kLow));
    REQUIRE(std::memcmp(&want, y.data() + i, sizeof want) == 0);
  }
}

TEST_CASE_TEMPLATE("random: normals have their mean, deviation and tails", T, float, bf16, f16,
                   double) {
  const Array<T> y = normal<T>(kMany);
  const Moments found = moments(y);
  CHECK(std::abs(found.mean - 1) < allowed(2) + epsilon_of<T>());
  CHECK(std::abs(found.variance - 4) < allowed(4 * std::sqrt(2.0)) + 8 * epsilon_of<T>());
  int64_t within = 0;
  for (int64_t i = 0; i < y.size(); ++i) within += std::abs(y[i] - 1) < 2;
  const double share = static_cast<double>(within) / static_cast<double>(kMany);
  CHECK(std::abs(share - std::erf(std::sqrt(0.5))) < allowed(0.5) + epsilon_of<T>());
}

TEST_CASE_TEMPLATE("random: dropout drops its share and scales the rest", T, float, bf16, f16,
                   double) {
  Array<T> x({kMany}, std::vector<double>(kMany, 3));
  const Array<T> y = dropped(x, 0.25);
  const double kept = to_double(from_double<T>(3 / 0.75));
  int64_t zeros = 0;
  for (int64_t i = 0; i < y.size(); ++i) {
    zeros += y[i] == 0;
    REQUIRE((y[i] == 0 || std::abs(y[i] - kept) <= 2 * epsilon_of<T>() * kept));
  }
  const double share = static_cast<double>(zeros) / static_cast<double>(kMany);
  CHECK(std::abs(share - 0.25) < allowed(std::sqrt(0.25 * 0.75)));
  CHECK(same_beginning(dropped(x, 0), x));
}

TEST_CASE_TEMPLATE("random: numbers depend on neither threads nor the size", T, float, bf16, f16,
                   double) {
  Array<T> x({kMany}, std::vector<double>(kMany, 3));
  for (const int threads : {1, 3, 8}) {
    CAPTURE(threads);
    CHECK(same_beginning(uniform<T>(kMany, -1, 3, threads), uniform<T>(kMany, -1, 3)));
    CHECK(same_beginning(normal<T>(kMany, threads), normal<T>(kMany)));
    CHECK(same_beginning(dropped(x, 0.25, threads), dropped(x, 0.25)));
    CHECK(same_beginning(words(kMany, threads), words(kMany)));
  }
  for (const int64_t n : {0, 1, 2, 3, 5, 255, 256, 257, 4099}) {
    CAPTURE(n);
    CHECK(same_beginning(uniform<T>(n, -1, 3), uniform<T>(kMany, -1, 3)));
    CHECK(same_beginning(normal<T>(n), normal<T>(kMany)));
    CHECK(same_beginning(words(n), words(kMany)));
  }
}

TEST_CASE("random: words are 32 bits, each as often set as not") {
  const Array<int64_t> y = words(kMany);
  for (int bit = 0; bit < 32; ++bit) {
    int64_t set = 0;
    for (int64_t i = 0; i < y.size(); ++i) set += y.data()[i] >> bit & 1;
    CHECK(std::abs(static_cast<double>(set) / static_cast<double>(kMany) - 0.5) < allowed(0.5));
  }
  for (int64_t i = 0; i < y.size(); ++i) REQUIRE((y.data()[i] >> 32) == 0);
}

}  // namespace
