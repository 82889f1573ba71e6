// head_tiles.h.
#include "kernels/cpu/head_tiles.h"

#include <algorithm>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/onednn.h"
#include "kernels/cpu/tiles.h"

namespace balora {
namespace {

constexpr int64_t kBlockBytes = int64_t{1} << 19;  // of a packed block: half an L2 of 1 MiB

int64_t tokens_of_block(int64_t channels) {
  const int64_t fitting = kBlockBytes / (channels * static_cast<int64_t>(sizeof(bf16)));
  return std::max<int64_t>(fitting / kTileN, 4) * kTileN;
}

// Calls body(first, count, tiles) for every block of tokens, with W's rows of the block packed: as
// (C,count) if `transposed`, for h W^T, else as (count,C), for dz W.
template <typename Body>
void for_blocks(Context* ctx, const View& w, bool transposed, const Body& body) {
  const int64_t vocabulary = w.shape[0], channels = w.shape[1];
  const int64_t block = std::min(tokens_of_block(channels), round_up(vocabulary, kTileN));
  auto* tiles = static_cast<bf16*>(CpuState::of(ctx).scratch(
      CpuState::kWeightTiles, static_cast<uint64_t>(tiles_size(channels, block)) * sizeof(bf16)));
  for (int64_t first = 0; first < vocabulary; first += block) {
    const int64_t count = std::min(block, vocabulary - first);
    const bf16* from = data_of<bf16>(&w) + first * channels;
    if (transposed) {
      pack_tiles(ctx, from, 1, channels, channels, count, tiles);
    } else {
      pack_tiles(ctx, from, channels, 1, count, channels, tiles);
    }
    body(first, count, tiles);
  }
}

}  // namespace

bool head_fits_tiles(const View& h, const View& w) {
  return h.dtype == BALORA_BF16 && w.dtype == BALORA_BF16 && tiles_ready() && view_contiguous(w) &&
         view_numel(w) > 0;
}

void head_logits_tiles(Context* ctx, std::span<const HeadLogits> products, int64_t rows,
                       const View& w) {
  const int64_t channels = w.shape[1];
  for_blocks(ctx, w, true, [&](int64_t first, int64_t count, const bf16* tiles) {
    for (const HeadLogits& product : products) {
      const TileSum sum = {count,
                           {{product.h, product.ld, channels, tiles}},
                           {product.z + first, BALORA_F32, product.z_ld}};
      run_tiles(ctx, rows, {}, {&sum, 1});
    }
  });
}

void head_gradient_tiles(Context* ctx, std::span<const bf16* const> parts, int64_t ld, int64_t rows,
                         const View& w, float* dh) {
  const int64_t channels = w.shape[1];
  for_blocks(ctx, w, false, [&](int64_t first, int64_t count, const bf16* tiles) {
    TileSum sum = {channels, {}, {dh, BALORA_F32, channels}};
    for (const bf16* part : parts) sum.terms.push_back({part + first, ld, count, tiles});
    sum.out.accumulate = first > 0;
    run_tiles(ctx, rows, {}, {&sum, 1});
  });
}

}  // namespace balora
