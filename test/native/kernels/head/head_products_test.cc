// The head's products in tiles: the gradient of the hidden states sums blocks of tokens.
#include "kernels/cpu/head/head_products.h"

#include <bit>

#include "kernels/cpu/products/tiles.h"
#include "support/kernel_test.h"

namespace balora::test {
namespace {

struct Gradient {
  int64_t rows, channels, vocabulary;
};

// Rows of dz lie `kApart` elements further apart than they are long.
constexpr int64_t kApart = 32;

std::vector<float> gradient_of(const Gradient& g, const Array<bf16>& dz, Array<bf16>& w,
                               int threads) {
  TestContext ctx(threads);
  const View vw = w.view();
  std::vector<float> sums(static_cast<size_t>(g.rows * g.channels), -1.0f);
  const GemmInput part = {dz.data(), BALORA_BF16, g.vocabulary + kApart};
  head_gradient(ctx, {&part, 1}, g.rows, vw, vw, {sums.data(), BALORA_F32, g.channels});
  return sums;
}

}  // namespace

TEST_CASE("head in tiles: dh sums all blocks of tokens, whole panels of rows and columns or not") {
  if (!tiles_ready()) {
    MESSAGE("not run: this process has no instructions for products of bf16");
    return;
  }
  // Three blocks of tokens on AMX; the last of the first is ragged.
  for (const Gradient& g : {Gradient{33, 72, 15'003}, Gradient{64, 96, 12'000}}) {
    CAPTURE(g.rows);
    std::mt19937 random(3);
    Array<bf16> dz({g.rows, g.vocabulary + kApart}, random), w({g.vocabulary, g.channels}, random);
    const std::vector<float> sums = gradient_of(g, dz, w, 2);
    std::vector<double> want(sums.size());
    for (int64_t i = 0; i < g.rows; ++i) {
      for (int64_t v = 0; v < g.vocabulary; ++v) {
        const double value = dz[i * (g.vocabulary + kApart) + v];
        for (int64_t c = 0; c < g.channels; ++c) {
          want[static_cast<size_t>(i * g.channels + c)] += value * w[v * g.channels + c];
        }
      }
    }
    for (size_t i = 0; i < sums.size(); ++i) {
      const bool close = std::abs(sums[i] - want[i]) <= 1e-2;  // of 12,000 terms of up to 4
      if (!close) CHECK_MESSAGE(close, "index ", i, ": got ", sums[i], ", expected ", want[i]);
    }
    const std::vector<float> alone = gradient_of(g, dz, w, 1);
    for (size_t i = 0; i < sums.size(); ++i) {
      REQUIRE(std::bit_cast<uint32_t>(alone[i]) == std::bit_cast<uint32_t>(sums[i]));
    }
  }
}

}  // namespace balora::test
