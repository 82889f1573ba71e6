// run_tiles (tiles.h): what is packed for all threads, and how they share rows and columns.
#include <algorithm>
#include <optional>

#include "kernels/cpu/products/tiles_job.h"
#include "kernels/cpu/runtime/implementation.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/scratch.h"

namespace balora {
namespace {

using namespace tiles;

// Up to so many threads pack all of B each for itself where they share the rows: a packed element
// is used by each row once, so that this costs less than a hundredth of the products of 1,000 rows,
// and what one core packs and another reads costs 3 to 6 of them where they share no cache.
constexpr int kMostPackers = 4;

// Elements that a thread packs at a time, at most; whole pages, so that threads share no line.
int64_t largest_packing(const Job& job) {
  const bool any = std::any_of(job.sums.begin(), job.sums.end(), [](const Sum& sum) {
    return sum.is_unpacked() && !(sum.in_place && sum.n % kTileN == 0);
  });
  if (!any) return 0;
  int64_t all = 0, largest = tiles_core().cached_bytes;
  for (const Item& item : job.items) all += item.bytes, largest = std::max(largest, item.bytes);
  return round_up(std::min(all, largest), 4096) / static_cast<int64_t>(sizeof(bf16));
}

// Elements of all that is to be packed.
int64_t packed_elements(const Job& job) {
  int64_t elements = 0;
  for (const Sum& sum : job.sums) {
    for (const Unpacked& operand : sum.unpacked) elements += tiles_size(operand.k, sum.n);
    const int64_t panels = round_up(sum.n, kTileN) / kTileN;
    for (const Int8Source& term : sum.int8) elements += int8_elements(term.b, panels);
  }
  return elements;
}

// Packs it once for all threads.
void pack_all(Context* ctx, Job& job, bf16* to) {
  for (Sum& sum : job.sums) {
    for (const Unpacked& operand : sum.unpacked) {
      pack_tiles(ctx, operand.matrix, operand.k, sum.n, to);
      sum.terms[operand.term].tiles = to;
      to += tiles_size(operand.k, sum.n);
    }
    const int64_t panels = round_up(sum.n, kTileN) / kTileN;
    for (Int8Source& term : sum.int8) {
      auto* const packed = reinterpret_cast<int8_t*>(to);
      const int64_t panel_bytes = term.b.steps() * kInt8StepBytes;
      parallel_for(ctx, panels, 1, [&](int64_t begin, int64_t end) {
        pack_int8_panels(term.b, begin, end, packed + begin * panel_bytes);
      });
      term.tiles = packed;
      to += int8_elements(term.b, panels);
    }
    sum.unpacked.clear();
  }
}

constexpr Core<TilesCore> kCores[] = {
    BALORA_X86("amx", platform::kAmx,
               {x86::run_part_amx, x86::contract_amx, int64_t{17} << 16, true}),
    BALORA_X86("avx512_bf16", platform::kBf16,
               {x86::run_part_avx512, x86::contract_avx512, int64_t{1} << 20}),
    {"none", 0, {}},
};

}  // namespace

BALORA_IMPLEMENTATIONS(tiles, kCores)

const TilesCore& tiles::tiles_core() {
  static const TilesCore& core = first_core(kCores).run;
  return core;
}

int64_t tile_padding(int64_t m, std::span<const TileSum> sums) {
  int64_t elements = 0;
  for (const TileSum& sum : sums) {
    for (const TileTerm& term : sum.terms) elements += padding_elements(term, m);
  }
  return elements;
}

void run_tiles_alone(int64_t m, std::span<const TileSum> sums, bf16* padding) {
  if (m == 0) return;
  const Job job = make_job(m, {}, sums, padding);
  tiles_core().run_part(
      job, {.row_end = round_up(m, kPanelRows) / kPanelRows, .item_end = job.items.size()});
}

void run_tiles(Context* ctx, int64_t m, std::span<const TileProjection> projections,
               std::span<const TileSum> sums) {
  if (m == 0) return;
  int64_t padding = tile_padding(m, sums);
  for (const TileProjection& p : projections) padding += padding_elements(p.x, m);
  const Scratch<bf16> padded(ctx, padding);
  Job job = make_job(m, projections, sums, padded.data());
  const Scratch<bf16> in_place_rows(ctx, in_place_elements(job));
  if (in_place_rows.data()) pack_in_place_rows(job, in_place_rows.data());
  const int64_t rows = round_up(m, kPanelRows) / kPanelRows;
  const auto items = static_cast<int64_t>(job.items.size());
  const int threads = ctx->num_threads;
  const auto run = tiles_core().run_part;
  if (rows == 1 && threads > 1 && !job.projections.empty()) {
    // Threads share the sums of a single panel, which read what its projections write.
    run(job, {.row_end = rows});
    job.projections.clear();
  }
  // A single panel is not divided; what it multiplies in place must stay unpacked.
  const bool by_rows = rows > 1 && (!job.projections.empty() ||
                                    evenness(rows, threads) + 0.02 >= evenness(items, threads));
  const bool packs_all = by_rows && threads > kMostPackers;
  const Scratch<bf16> packed(ctx, packs_all ? packed_elements(job) : 0);
  if (packs_all) pack_all(ctx, job, packed.data());
  const int64_t size = largest_packing(job);
  const Scratch<bf16> packings(ctx, threads * size);
  bf16* const own = packings.data();
  // Chunks are the same for all threads where each has some rows.
  std::optional<Balance> balance;
  if (by_rows && rows >= 2 * threads) balance.emplace(rows, threads);
  parallel_for(ctx, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      Part part{.row_end = rows, .item_end = job.items.size(), .own = own ? own + t * size : own};
      if (by_rows) {
        part.row_begin = rows * t / threads;
        part.row_end = rows * (t + 1) / threads;
        part.thread = static_cast<int>(t);
        part.balance = balance ? &*balance : nullptr;
      } else {
        part.item_begin = static_cast<size_t>(items * t / threads);
        part.item_end = static_cast<size_t>(items * (t + 1) / threads);
      }
      run(job, part);
    }
  });
}

}  // namespace balora
