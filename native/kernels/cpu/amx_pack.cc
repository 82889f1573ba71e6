// The packed form of B operands (amx.h): panels of 32 columns; in a panel, for each 32 of k, two
// tiles of 16 columns; in a tile, 16 rows of (k, k+1) pairs. Edges are padded with zeros.
#include "kernels/cpu/amx.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd.h"

namespace balora {
namespace {

constexpr int64_t kStepElements = kTileK * kTileN;  // one step of one panel

// (k, k+1) of one column.
constexpr uint32_t pair_of(bf16 first, bf16 second) {
  return static_cast<uint32_t>(first.bits) | static_cast<uint32_t>(second.bits) << 16;
}

BALORA_INLINE bf16 half_of(float value, Half half) {
  const bf16 high = to_bf16(value);
  return half == Half::kHigh ? high : to_bf16(value - to_float(high));
}

// Where the pair (k, k+1), k even, of column n stands, in pairs.
BALORA_INLINE int64_t pair_index(int64_t k, int64_t n, int64_t steps) {
  return ((n / kTileN * steps + k / kTileK) * kStepElements +
          n % kTileN / 16 * (kStepElements / 2)) /
             2 +
         k % kTileK / 2 * 16 + n % 16;
}

BALORA_SIMD void pack_row_pair(const FactorLine& a, const FactorLine& b, int64_t n, int64_t begin,
                               int64_t end, uint32_t* to) {
  for (int64_t j = begin; j < end; ++j) {
    const float first = a.data && j < n ? a.scale * a.data[j * a.stride] : 0;
    const float second = b.data && j < n ? b.scale * b.data[j * b.stride] : 0;
    to[j - begin] = pair_of(half_of(first, a.half), half_of(second, b.half));
  }
}

BALORA_SIMD void pack_column(const FactorLine& c, int64_t k, int64_t n, int64_t steps,
                             uint32_t* to) {
  const int64_t padded = steps * kTileK;
  for (int64_t i = 0; i < padded; i += 2) {
    const float first = c.data && i < k ? c.scale * c.data[i * c.stride] : 0;
    const float second = c.data && i + 1 < k ? c.scale * c.data[(i + 1) * c.stride] : 0;
    to[pair_index(i, n, steps)] = pair_of(half_of(first, c.half), half_of(second, c.half));
  }
}

}  // namespace

void pack_tiles(Context* ctx, const bf16* b, int64_t k_stride, int64_t n_stride, int64_t k,
                int64_t n, bf16* tiles) {
  const int64_t steps = round_up(k, kTileK) / kTileK, panels = round_up(n, kTileN) / kTileN;
  auto* to = reinterpret_cast<uint32_t*>(tiles);
  const auto value = [&](int64_t i, int64_t j) {
    return i < k && j < n ? b[i * k_stride + j * n_stride] : bf16{0};
  };
  parallel_for(ctx, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < steps * kTileK; i += 2) {
      for (int64_t j = begin * kTileN; j < end * kTileN; ++j) {
        to[pair_index(i, j, steps)] = pair_of(value(i, j), value(i + 1, j));
      }
    }
  });
}

void pack_factor_rows(Context* ctx, std::span<const FactorLine> rows, int64_t n, bf16* tiles) {
  const auto k = static_cast<int64_t>(rows.size());
  const int64_t steps = round_up(k, kTileK) / kTileK, panels = round_up(n, kTileN) / kTileN;
  auto* to = reinterpret_cast<uint32_t*>(tiles);
  parallel_for(ctx, panels * 2, 4, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      for (int64_t i = 0; i < steps * kTileK; i += 2) {
        const FactorLine a = i < k ? rows[static_cast<size_t>(i)] : FactorLine{};
        const FactorLine b = i + 1 < k ? rows[static_cast<size_t>(i + 1)] : FactorLine{};
        pack_row_pair(a, b, n, tile * 16, tile * 16 + 16, to + pair_index(i, tile * 16, steps));
      }
    }
  });
}

void pack_factor_columns(Context* ctx, std::span<const FactorLine> columns, int64_t k,
                         bf16* tiles) {
  const auto n = static_cast<int64_t>(columns.size());
  const int64_t steps = round_up(k, kTileK) / kTileK;
  parallel_for(ctx, round_up(n, kTileN), 8, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      const FactorLine column = j < n ? columns[static_cast<size_t>(j)] : FactorLine{};
      pack_column(column, k, j, steps, reinterpret_cast<uint32_t*>(tiles));
    }
  });
}

}  // namespace balora
