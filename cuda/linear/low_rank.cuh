// The f32 masters of low-rank parts as bf16 matrices, and the products around them on the tensor
// cores, in one of two forms.
// Pairs: a master m is hi = bf16(m) and lo = bf16(m - hi), off by at most 2^-17 |m|; x is bf16
// already, so x hi + x lo is as good as f32. Where both sides are pairs (U B^T, dU A) three
// products are made, hi hi + hi lo + lo hi; what is left out is 2^-18 of each term.
// A change: a part with a start (a PiSSA pair), s (B A - B0 A0), is s [(B - B0) A + B0 (A - A0)],
// the differences formed in f32 and every factor rounded to bf16 once. Each rounding is at most
// 2^-8 of the change, not of B A; before the first step all of it is exactly zero. Inner extents
// are 2 R, where pairs of both products need 6 R.
#pragma once
#include <vector>

#include "linear/linear_sum.cuh"

namespace balora::cuda {

constexpr int kPanelParts = 4;

// Parts of one linear and rank, or one part with a start. `width` columns (padded to a multiple of
// 8), and as many beside them: of pairs the hi and the lo halves, the columns of several parts
// interleaved (element j of part p is column j * parts + p), so that parts which cancel meet in the
// same mma instruction, where equal products of opposite sign give exactly zero; of a change A and
// A - A0, or s (B - B0) and s B0.
struct Panel {
  int32_t linear, parts = 0;
  bool change = false;
  int64_t rank, width = 0;
  const LowRankOperands* part[kPanelParts] = {};
};

// Both halves of a panel's rows: (rows, 2 width) at `data`, `stride` apart.
struct Halves {
  bf16* data;
  int64_t stride, width;

  const bf16* first() const { return data; }
  const bf16* second() const { return data + width; }
};

// Panels of the parts of a linear, the index-th of its group: a change for each part with a start,
// the others with several parts each if `interleave`.
std::vector<Panel> panels_of(const LinearOperands& linear, int32_t index, bool interleave);

// Elements (i, j) of the factors of a change, at i * cols + j, which go to i * stride + j and, the
// second half, `second` further on.
struct ChangedFactor {
  const float *now, *start;
  int64_t rows, cols, padded_rows, padded_cols;  // zero beyond rows and cols
  bf16* out;
  int64_t stride, second;
  float scale;
  bool of_b;  // s (B - B0) and s B0, else A and A - A0
};

// Makes bf16 of panels' factors; those of changes in one launch when run() is called.
class FactorSplitter {
 public:
  explicit FactorSplitter(Context* ctx) : ctx_(ctx) {}
  // A (R,I) of the panel's parts -> (2 width, I), rows past the rank zero.
  void add_a(const Panel& panel, bf16* out);
  // scale B (O,R) -> halves with rows O.
  void add_b(const Panel& panel, const Halves& out);
  void run();

 private:
  Context* ctx_;
  std::vector<ChangedFactor> changed_;
};

// U (N,R), f32 -> pairs.
void split_u(Context* ctx, const View& u, const Halves& out);

// Results of the products (N, 2 width; f32, rows `stride` apart) of a panel: their halves in bf16,
// and those of the others that are not null. Halves of pairs are summed first.
struct Joined {
  Halves halves;
  bool write_u = false;  // each part's u in f32
  bf16* sum = nullptr;   // of a change: both halves' sum (N, width), rounded once
};
void join_products(Context* ctx, const Panel& panel, int64_t n, const float* products,
                   int64_t stride, const Joined& out);

// The terms of a panel's halves (M,K) times factors: (N, 2 width) if b_inner, else (2 width, N),
// with rows b_stride apart. Three of pairs, one of a change.
void add_terms(std::vector<SumTerm>& terms, const Panel& panel, const Halves& a, const bf16* b,
               int64_t b_stride, bool b_inner);

}  // namespace balora::cuda
