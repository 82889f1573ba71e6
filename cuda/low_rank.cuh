// The f32 masters of low-rank parts as pairs of bf16 matrices, and the products around them on the
// tensor cores. A master m is kept as hi = bf16(m) and lo = bf16(m - hi), off by at most 2^-17 |m|;
// x is bf16 already, so x hi + x lo is as good as f32. Where both sides are pairs (U B^T, dU A)
// three products are made, hi hi + hi lo + lo hi; what is left out is 2^-18 of each term.
#pragma once
#include <vector>

#include "linear_sum.cuh"

namespace balora::cuda {

constexpr int kPanelParts = 4;

// Parts of one linear and rank, their columns interleaved: element j of part p is column j * parts
// + p of `width` (padded to a multiple of 8), the lo halves `width` further on. Parts that cancel
// (a PiSSA pair before its first step) then meet in the same mma instruction, where equal products
// of opposite sign give exactly zero.
struct Panel {
  int32_t parts;
  int64_t rank, width;
  const LowRankOperands* part[kPanelParts];
};

// Rows of pairs: (rows, 2 width) at `data`, `stride` apart.
struct Pairs {
  bf16* data;
  int64_t stride, width;

  const bf16* hi() const { return data; }
  const bf16* lo() const { return data + width; }
};

// Panels of the parts of `linear`, or with one part each.
std::vector<Panel> panels_of(const LowRankOperands* parts, int32_t count, int32_t linear,
                             bool interleave);

// A (R,I) of the panel's parts -> (2 width, I), rows past the rank zero.
void split_a(Context* ctx, const Panel& panel, bf16* out);
// scale B (O,R) -> pairs with rows O.
void split_b(Context* ctx, const Panel& panel, const Pairs& out);
// U (N,R), f32 -> pairs.
void split_u(Context* ctx, const View& u, const Pairs& out);
// Sums hi and lo halves of `products` (N, 2 width; f32, rows `stride` apart) -> pairs, and in f32
// each part's u where `write_u`.
void join_products(Context* ctx, const Panel& panel, int64_t n, const float* products,
                   int64_t stride, const Pairs& out, bool write_u);

// The three terms of pairs (M,K) times pairs, (N,K) if b_inner, else (2 width, N) with rows
// b_stride apart.
void add_pair_terms(std::vector<SumTerm>& terms, const Pairs& a, const bf16* b_hi, const bf16* b_lo,
                    int64_t b_stride, bool b_inner);

}  // namespace balora::cuda
