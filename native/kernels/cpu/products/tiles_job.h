// One walk of run_tiles as its threads see it (tiles_multiply.cc): operands with their ragged edges
// filled up, and the panels of columns that are shared out.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/products/tiles.h"
#include "kernels/cpu/products/tiles_cores.h"
#include "kernels/cpu/products/tiles_target.h"

#ifdef BALORA_TILES
namespace balora::tiles {

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

}  // namespace balora::tiles
#endif
