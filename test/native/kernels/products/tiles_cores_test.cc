// Blocks of tiles on AVX512-BF16: a sum has the same bits whatever rows are multiplied beside it.
#if defined(__x86_64__)
#include "kernels/cpu/products/x86/tiles_cores.h"

#include <algorithm>
#include <array>
#include <bit>

#include "platform/cpu.h"
#include "support/kernel_test.h"

namespace balora::test {
namespace {

using tiles::Avx512Core;
using tiles::BlockPlace;
using tiles::PendingRows;
using tiles::Source;

constexpr int64_t kSteps = 3, kDepth = kSteps * kTileK;
constexpr int64_t kBeginningLd = 64;
constexpr int64_t kFarApart = 2048;  // 4 KiB: blocks of eight rows

// The bits of the first `rows` rows of a block, of A from `a` on.
std::vector<uint32_t> product_bits(const bf16* a, int64_t lda, const bf16* b, int64_t rows,
                                   const float* beginning) {
  const Source term{.a = a,
                    .lda = lda,
                    .tail = a,
                    .tail_ld = lda,
                    .steps = kSteps,
                    .pairs = kDepth / 2 - 5,
                    .tiles = b};
  alignas(64) std::array<float, kPanelRows * kTileN> c;
  PendingRows none;
  Avx512Core::multiply({&term, 1}, 0, rows, 0, none, BlockPlace{.data = c.data(), .ld = kTileN},
                       {beginning, kBeginningLd});
  std::vector<uint32_t> bits;
  for (int64_t i = 0; i < rows * kTileN; ++i) bits.push_back(std::bit_cast<uint32_t>(c.data()[i]));
  return bits;
}

}  // namespace

TEST_CASE("tiles: rows multiplied by eights, by twelves and alone have the same bits") {
  static_assert(twelve_rows_fit(kDepth * 2) && !twelve_rows_fit(kFarApart * 2));
  if (!platform::cpu().uses(platform::kBf16)) {
    MESSAGE("not run: this process has no instructions for products of bf16");
    return;
  }
  std::mt19937 random(4);
  std::uniform_real_distribution<double> uniform(-1, 1);
  std::array<bf16, kPanelRows * kDepth> near;
  std::vector<bf16> far(kPanelRows * kFarApart);
  alignas(64) std::array<bf16, (kSteps + 1) * kStepElements> b;
  alignas(64) std::array<float, kPanelRows * kBeginningLd> begun;
  for (int64_t r = 0; r < kPanelRows; ++r) {
    for (int64_t k = 0; k < kDepth; ++k) {
      near.data()[r * kDepth + k] = far.data()[r * kFarApart + k] =
          from_double<bf16>(uniform(random));
    }
  }
  std::generate(b.begin(), b.end(), [&] { return from_double<bf16>(uniform(random)); });
  std::generate(begun.begin(), begun.end(), [&] { return static_cast<float>(uniform(random)); });
  for (int64_t rows = 1; rows <= kPanelRows; ++rows) {
    CAPTURE(rows);
    for (const bool begins : {false, true}) {
      const float* const from = begins ? begun.data() : nullptr;
      std::vector<uint32_t> alone;
      for (int64_t r = 0; r < rows; ++r) {
        const auto one = product_bits(near.data() + r * kDepth, kDepth, b.data(), 1,
                                      from ? from + r * kBeginningLd : nullptr);
        alone.insert(alone.end(), one.begin(), one.end());
      }
      CHECK(product_bits(near.data(), kDepth, b.data(), rows, from) == alone);
      CHECK(product_bits(far.data(), kFarApart, b.data(), rows, from) == alone);
    }
  }
}

}  // namespace balora::test
#endif
