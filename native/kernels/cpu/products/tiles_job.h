// One walk of run_tiles as its threads see it (tiles_multiply.cc): operands with their ragged edges
// filled up, the panels of columns that are shared out, and what multiplies them on this processor.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/products/tiles.h"
#include "kernels/cpu/runtime/parallel.h"

namespace balora::tiles {

constexpr int64_t kInPlaceRows = 16;  // of A: more are multiplied by packed operands

// A term whose k is a multiple of 32, and its last rows filled up to a panel. Beyond `pairs` pairs
// of k there are only zeros.
struct Source {
  const bf16* a;
  int64_t lda;
  const bf16* tail = nullptr;  // the last rows, where they are not a whole panel
  int64_t tail_ld;
  int64_t steps, pairs;
  const bf16* tiles;  // of the panels from `first_panel` on
  int64_t first_panel = 0;
  int64_t skipped = 0, panel_steps = steps;  // of a part of a term: steps before it, and of all

  const bf16* panel(int64_t index) const {
    return tiles + ((index - first_panel) * panel_steps + skipped) * kStepElements;
  }
  // `count` steps of a whole term.
  Source part(int64_t first, int64_t count) const {
    Source source = *this;
    source.a += first * kTileK;
    if (tail) source.tail += first * kTileK;
    source.steps = count, source.skipped = first;
    source.pairs = std::clamp<int64_t>(pairs - first * kTileK / 2, 0, count * kTileK / 2);
    return source;
  }
};

struct Projection {
  Source x;
  std::span<const TileFactor> factors;
};

// The B of a term that is to be packed.
struct Unpacked {
  size_t term;
  TileMatrix matrix;
  int64_t k;
};

// A term in int8; `tiles` is null until somebody has packed the panels from `first_panel` on.
struct Int8Source {
  Int8Rows a;
  Int8Matrix b;
  const int8_t* tiles = nullptr;
  int64_t first_panel = 0;
};

struct Sum {
  int64_t n;
  std::vector<Source> terms;
  std::vector<Unpacked> unpacked;
  TileOutput out;
  bool in_place = false;  // its last term's B is multiplied as it lies (few rows)
  // A of the last term as a packed B operand, where AMX multiplies that term in place.
  const bf16* rows = nullptr;
  std::vector<Int8Source> int8 = {};

  // Panels that are multiplied together, since a rotation mixes them.
  int64_t panels_at_once() const { return int8.empty() ? 1 : int8[0].b.panels_at_once(); }
  // Whether anything of B is still to be packed.
  bool is_unpacked() const { return !unpacked.empty() || (!int8.empty() && !int8[0].tiles); }
};

// One panel of columns of one sum, or those that are multiplied together from there on.
struct Item {
  size_t sum;
  int64_t panel;
  int64_t bytes;
};

struct Job {
  int64_t m;
  std::vector<Projection> projections;
  std::vector<Sum> sums;
  std::vector<Item> items;
};

// How threads that share the rows of a job end together: in the last chunk of B, which each has at
// hand like those before, whoever is done takes panels of rows of the others.
struct Balance {
  Balance(int64_t rows, int threads) : shares(rows, 1, threads), threads(threads) {}

  bool all_projected() const { return projected.load(std::memory_order_acquire) == threads; }

  Shares shares;  // of panels of rows, in the last chunk
  int threads;
  std::atomic<int> projected{0};  // threads that have projected all of their own panels
};

// A thread's part of a job: row panels and items as [begin, end).
struct Part {
  int64_t row_begin = 0, row_end = 0;
  size_t item_begin = 0, item_end = 0;
  bf16* own =
      nullptr;  // the thread's memory for what it has to pack; null: nothing is to be packed
  Balance* balance = nullptr;  // of threads that share the rows; null: they keep to their own
  int thread = 0;              // its number among them
};

// Elements of the copies that a term's ragged edges take.
int64_t padding_elements(const TileTerm& term, int64_t m);

// `scratch` has the elements of padding that all terms ask for.
Job make_job(int64_t m, std::span<const TileProjection> projections, std::span<const TileSum> sums,
             bf16* scratch);

// Elements of `rows` for the sums of a walk that has them: few rows, on AMX.
int64_t in_place_elements(const Job& job);
// Makes them in `scratch`.
void pack_in_place_rows(Job& job, bf16* scratch);
// Whether the panel of an item is multiplied as it lies.
inline bool in_place(const Job& job, const Item& item) {
  const Sum& sum = job.sums[item.sum];
  return sum.in_place && (item.panel + 1) * kTileN <= sum.n;
}

// Packs what the items [first, last) multiply by and nobody has packed.
void pack_items(const Job& job, size_t first, size_t last, std::vector<Sum>& sums, bf16* to);

// Elements of bf16 that packed panels of a term in int8 take the place of.
inline int64_t int8_elements(const Int8Matrix& b, int64_t panels) {
  return panels * b.steps() * kInt8StepBytes / static_cast<int64_t>(sizeof(bf16));
}

// Sixteen lines as a tile has them; those past the last are zeros.
struct FactorRun {
  static constexpr int64_t kLines = 16;
  FactorLine lines[kLines];
  bool adjoins = false;  // in memory side by side
};
std::vector<FactorRun> runs_of(std::span<const FactorLine> lines, int64_t count);
// 32 elements of them from `first` of k on, as a tile of a left operand: a row for each line.
void pack_left_tile(const FactorRun& run, int64_t first, int64_t k, bf16* tile);

// p^T x of contract_tiles.
struct Contraction {
  const bf16* x;
  int64_t m, k;
  const bf16* pt;  // by steps of 32 rows, rank tiles and halves, tiles of (16 ranks,32 rows)
  int64_t rank_tiles;
  int64_t halves;  // 1, or 2: what rounding left of a tile's values follows it
  // Per panel of 32 columns and rank tile two tiles of (16 ranks,16 columns). The column of a lane
  // is true_column().
  float* sums;
};
constexpr int64_t kTileElements = kRankTile * kTileK;  // bf16 of a tile
constexpr int64_t kSumElements = 2 * kRankTile * 16;   // of one rank tile and one panel

// Column of x (within its 32) that stands at `lane` of tile `half`: cores interleave rows within
// 128-bit lanes, and the columns are put right when the sums are written.
constexpr int64_t true_column(int64_t half, int64_t lane) {
  return lane / 4 * 8 + half * 4 + lane % 4;
}

// A kind of processor that multiplies tiles.
struct TilesCore {
  void (*run_part)(const Job& job, const Part& part) = nullptr;
  void (*contract)(const Contraction& c, int64_t begin, int64_t end) = nullptr;  // of panels
  int64_t cached_bytes = 0;  // of B that stay in L2 over all rows, at most
  bool packs_rows = false;   // A, where B is multiplied in place
};
// Where tiles_ready().
const TilesCore& tiles_core();

}  // namespace balora::tiles

namespace balora::x86 {
void run_part_amx(const tiles::Job& job, const tiles::Part& part);
void run_part_avx512(const tiles::Job& job, const tiles::Part& part);
void contract_amx(const tiles::Contraction& c, int64_t begin, int64_t end);
void contract_avx512(const tiles::Contraction& c, int64_t begin, int64_t end);
}  // namespace balora::x86
