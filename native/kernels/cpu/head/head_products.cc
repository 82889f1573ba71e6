// Threads share the columns of a product in tiles, and rows only where the columns do not share out
// evenly: each packs what it multiplies by, for itself, so that it waits for nobody and its packed
// block never leaves its L2.
#include "kernels/cpu/head/head_products.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/products/encoded.h"
#include "kernels/cpu/products/gemm.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/scratch.h"

namespace balora {
namespace {

constexpr int64_t kBlockBytes = int64_t{1} << 19;  // of a packed block: half an L2 of 1 MiB
// The same of a block that is summed over, on AMX, whose L2 has 2 MiB: sums are loaded and stored
// half as often, which matters beside such fast products.
constexpr int64_t kAmxSummedBytes = int64_t{1} << 20;

// The tokens of a block of `bytes`.
int64_t tokens_of_block(const View& w, int64_t bytes) {
  const int64_t fitting = bytes / (w.shape[1] * static_cast<int64_t>(sizeof(bf16)));
  return std::min(std::max<int64_t>(fitting / kTileN, 4) * kTileN, round_up(w.shape[0], kTileN));
}

// A product of rows x columns, its sums over `inner`, by blocks of B that are packed at a time.
struct Blocks {
  int64_t rows, columns, inner;
  TileMatrix b;
  int64_t block_columns, block_inner;
};

// sums = A B for whole A and outputs, of which a thread multiplies some rows and columns: its range
// of the panels of columns of all groups of rows.
void run_blocks(Context* ctx, const Blocks& o, std::span<const TileSum> sums) {
  const int64_t row_panels = round_up(o.rows, kPanelRows) / kPanelRows;
  const int64_t column_panels = round_up(o.columns, kTileN) / kTileN;
  const int64_t threads = std::max(ctx->num_threads, 1);
  const int64_t groups = row_groups(row_panels, column_panels, threads, 0.1);
  std::vector<TileSum> widest(sums.begin(), sums.end());
  for (TileSum& sum : widest) {
    // Blocks may be ragged where the inner extent is.
    for (TileTerm& term : sum.terms) term.k = o.block_inner - (o.inner % kTileK != 0 ? 1 : 0);
  }
  constexpr int64_t kPage = 4096 / sizeof(bf16);  // threads share no cache line
  const int64_t size = round_up(tiles_size(o.block_inner, o.block_columns), kPage);
  const int64_t each = size + round_up(tile_padding(o.rows, widest), kPage);
  const Scratch<bf16> scratch(ctx, threads * each);
  const auto multiply = [&](int64_t row, int64_t row_end, int64_t begin, int64_t end, bf16* tiles) {
    for (int64_t k = 0; k < o.inner; k += o.block_inner) {
      const int64_t depth = std::min(o.block_inner, o.inner - k);
      for (int64_t column = begin; column < end; column += o.block_columns) {
        const int64_t count = std::min(o.block_columns, end - column);
        pack_tile_panels(o.b.at(k, column), depth, count, 0, round_up(count, kTileN) / kTileN,
                         tiles);
        std::vector<TileSum> part(sums.begin(), sums.end());
        for (TileSum& sum : part) {
          sum.n = count, sum.out.accumulate = k > 0;
          sum.out.c = static_cast<float*>(sum.out.c) + row * sum.out.ldc + column;
          for (TileTerm& term : sum.terms) {
            term.a += row * term.lda + k, term.k = depth, term.tiles = tiles;
          }
        }
        run_tiles_alone(row_end - row, part, tiles + size);
      }
    }
  };
  parallel_for(ctx, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t thread = first; thread < last; ++thread) {
      const int64_t all = groups * column_panels, end = all * (thread + 1) / threads;
      for (int64_t item = all * thread / threads, next; item < end; item = next) {
        const int64_t group = item / column_panels, begin = group * column_panels;
        next = std::min(end, begin + column_panels);
        multiply(row_panels * group / groups * kPanelRows,
                 std::min(row_panels * (group + 1) / groups * kPanelRows, o.rows),
                 (item - begin) * kTileN, std::min((next - begin) * kTileN, o.columns),
                 scratch.data() + thread * each);
      }
    }
  });
}

// Tokens whose part of a head is widened or decoded at a time, 4 MiB in f32.
int64_t widened_tokens(const View& w) {
  constexpr int64_t kElements = int64_t{1} << 20, kLeast = 32;
  return std::max(kElements / std::max<int64_t>(w.shape[1], 1), kLeast) / kLeast * kLeast;
}

// Logits in tiles. A head is far larger than any cache and each chunk of rows reads all of it, so a
// block of tokens at a time is packed, and multiplied by every operand while it is in a cache.
void tiled_logits(Context* ctx, std::span<const LogitsOf<float>> products, int64_t first,
                  int64_t rows) {
  const View& w = *products[0].w;
  const int64_t vocabulary = w.shape[0], channels = w.shape[1];
  std::vector<TileSum> sums;
  for (const auto& [h, head, logits] : products) {
    const auto* const from = static_cast<const bf16*>(rows_of(h, first));
    sums.push_back({vocabulary,
                    {{from, h->stride[0], channels}},
                    {logits, BALORA_F32, logits_ld(vocabulary)}});
  }
  const int64_t block = tokens_of_block(w, kBlockBytes);
  const TileMatrix b = TileMatrix::of(w, 0, true);
  run_blocks(ctx, {rows, vocabulary, channels, b, block, round_up(channels, kTileK)}, sums);
}

// Logits by a head that is widened or decoded block by block, for all its products only once.
void widened_logits(Context* ctx, std::span<const LogitsOf<float>> products, int64_t first,
                    int64_t rows) {
  const View& w = *products[0].w;
  const int64_t vocabulary = w.shape[0], columns = w.shape[1], block = widened_tokens(w);
  const Scratch<float> left(ctx, std::ssize(products) * rows * columns);
  float* to = left.data();
  for (const auto& [h, head, logits] : products) {
    convert_rows(ctx, {rows_of(h, first), h->dtype, h->stride[0]}, {to, BALORA_F32, columns}, rows,
                 columns);
    to += rows * columns;
  }
  // A head in f32 is read where it lies, beside another one in blocks.
  const bool dense = !w.encoding && w.dtype == BALORA_F32 && w.stride[0] == columns;
  const Scratch<float> wide(ctx, dense ? 0 : block * columns);
  for (int64_t token = 0; token < vocabulary; token += block) {
    const int64_t count = std::min(block, vocabulary - token);
    if (w.encoding) {
      decode_rows(ctx, w, token, token + count, BALORA_F32, wide.data());
    } else if (!dense) {
      convert_rows(ctx, {rows_of(&w, token), w.dtype, w.stride[0]},
                   {wide.data(), BALORA_F32, columns}, count, columns);
    }
    const void* const head = dense ? rows_of(&w, token) : wide.data();
    const float* from = left.data();
    for (const LogitsOf<float>& product : products) {
      gemm(ctx, {rows, count, columns}, {from, BALORA_F32, columns},
           {head, BALORA_F32, columns, true},
           {product.logits + token, BALORA_F32, logits_ld(vocabulary)});
      from += rows * columns;
    }
  }
}

}  // namespace

void head_gradient(Context* ctx, std::span<const GemmInput> parts, int64_t rows, const View& h,
                   const View& w, const GemmOutput& dh) {
  if (parts[0].dtype != BALORA_BF16 || !head_fits_tiles(h, w)) {
    const ProductTerm term{parts[0].data, parts[0].dtype, parts[0].ld, &w};
    return sum_products(ctx, {rows, w.shape[1], {&term, 1}}, dh);
  }
  const int64_t vocabulary = w.shape[0], channels = w.shape[1];
  const int64_t block = tokens_of_block(w, tiles_use_amx() ? kAmxSummedBytes : kBlockBytes);
  TileSum sum = {channels, {}, {dh.data, dh.dtype, dh.ld}};
  for (const GemmInput& dz : parts) {
    sum.terms.push_back({static_cast<const bf16*>(dz.data), dz.ld, vocabulary});
  }
  const TileMatrix b = TileMatrix::of(w, 0, false);
  run_blocks(ctx, {rows, channels, vocabulary, b, round_up(channels, kTileN), block}, {&sum, 1});
}

void add_head_gradient(Context* ctx, const View& dw, HeadRange tokens, const GemmInput& dz,
                       const View& h, HeadRange rows) {
  const int64_t channels = h.shape[1];
  gemm(ctx, {tokens.end - tokens.begin, channels, rows.end - rows.begin}, dz,
       {rows_of(&h, rows.begin), h.dtype, h.stride[0]},
       {rows_of(&dw, tokens.begin), dw.dtype, channels}, {1, rows.begin ? 1.0 : 0.0});
}

template <typename A>
void head_logits(Context* ctx, std::span<const LogitsOf<A>> products, int64_t first, int64_t rows) {
  const auto all = [&](const auto& holds) { return std::ranges::all_of(products, holds); };
  if constexpr (std::is_same_v<A, float>) {
    const bool tiled = all([](const auto& p) { return head_fits_tiles(*p.h, *p.w); });
    if (tiled || !all([](const auto& p) { return !is_widened(*p.h, *p.w); })) {
      for (size_t i = 0, end = 0; i < products.size(); i = end) {
        while (end < products.size() && products[end].w == products[i].w) ++end;
        const auto run = tiled ? tiled_logits : widened_logits;
        run(ctx, products.subspan(i, end - i), first, rows);
      }
      return;
    }
  }
  const bool packs = all([](const auto& p) { return p.w->slots != nullptr; });
  for (const LogitsOf<A>& product : products) {
    View w = *product.w;
    if (!packs) w.slots = nullptr;
    const ProductTerm term{rows_of(product.h, first), product.h->dtype, product.h->stride[0], &w,
                           true};
    sum_products(ctx, {rows, w.shape[0], {&term, 1}},
                 {product.logits, kDtypeOfAcc<A>, logits_ld(w.shape[0])});
  }
}
template void head_logits(Context*, std::span<const LogitsOf<float>>, int64_t, int64_t);
template void head_logits(Context*, std::span<const LogitsOf<double>>, int64_t, int64_t);

}  // namespace balora
