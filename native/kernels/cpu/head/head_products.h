// The head's products for a chunk of rows: in tiles where they fit, else by packed weights or gemm.
// A is the type of logits: f32, or f64 beside f64.
#pragma once
#include <algorithm>
#include <cstdint>
#include <span>

#include "kernels/cpu/products/gemm.h"
#include "kernels/cpu/products/product_sum.h"
#include "kernels/cpu/products/tiles.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/stop.h"
#include "kernels/operands/head.h"
#include "kernels/shared/rows.h"

namespace balora {

// Whether the products of these hidden states and this head can run in tiles.
inline bool head_fits_tiles(const View& h, const View& w) {
  return h.dtype == BALORA_BF16 && w.dtype == BALORA_BF16 && tiles_ready() && view_contiguous(w) &&
         view_numel(w) > 0;
}

// Whether a head is widened or decoded block by block for each of its products.
inline bool is_widened(const View& h, const View& w) {
  return h.dtype != BALORA_F64 && w.dtype != BALORA_F64 && (w.encoding || w.dtype != BALORA_F32) &&
         !head_fits_tiles(h, w);
}

// Scratch for a chunk's rows: what the options say, or else `own`.
inline int64_t chunk_budget(const HeadOptions& options, int64_t own) {
  return options.chunk_bytes > 0 ? options.chunk_bytes : own;
}

// Rows of a chunk whose scratch takes `row_bytes` a row: all `rows` shared out evenly to as few
// chunks as the budget allows.
inline int64_t chunk_rows(int64_t rows, int64_t budget, int64_t row_bytes) {
  const int64_t fitting = std::max<int64_t>(1, budget / row_bytes);
  if (fitting >= rows) return rows;
  const int64_t chunks = (rows + fitting - 1) / fitting;
  const int64_t even = round_up((rows + chunks - 1) / chunks, kPanelRows);
  return even <= fitting         ? even
         : fitting >= kPanelRows ? fitting / kPanelRows * kPanelRows
                                 : fitting;
}

// Calls body(first, rows) for each chunk, until nobody wants the results any more.
template <typename Body>
void for_chunks(Context* ctx, int64_t rows, int64_t chunk, const Body& body) {
  for (int64_t first = 0; first < rows && !is_stopped(ctx); first += chunk) {
    body(first, std::min(chunk, rows - first));
  }
}

// Elements between rows of logits. Long rows begin 9 cache lines apart in the 64 sets of a
// first-level cache: one of 48 KiB then holds 1 KiB of each of the 32 that the gradient's products
// read together. Others have one line more than they need.
inline int64_t logits_ld(int64_t vocabulary) {
  constexpr int64_t kLine = 16, kSets = 64, kLinesApart = 9;
  const int64_t lines = (vocabulary + kLine - 1) / kLine;
  if (lines < 8 * kSets) return (lines + 1) * kLine;
  return (lines + (kSets + kLinesApart - lines % kSets) % kSets) * kLine;
}

// A matrix from one of its rows on.
inline void* rows_of(const View* view, int64_t row) {
  return offset_by(view->data, row * view->stride[0], view->dtype);
}

// The head of a live teacher beside a student's.
inline const View* head_of(const balora_teacher& teacher, const View& own) {
  return teacher.head ? teacher.head : &own;
}

// Rows of a batch, or tokens of a vocabulary.
struct HeadRange {
  int64_t begin, end;
};

// The logits of one hidden state by one head.
template <typename A>
struct LogitsOf {
  const View* h;  // (M,C)
  const View* w;  // (V,C)
  A* logits;      // (rows,V), rows logits_ld(V) apart
};

// Groups of panels of rows that share the work on each of so many columns, so that threads have as
// much of it each. Each group packs B anew, `packing` of what all rows are multiplied by.
inline int64_t row_groups(int64_t panels, int64_t columns, int64_t threads, double packing) {
  int64_t best = 1;
  double most = 0;
  for (int64_t groups = 1; groups <= panels; ++groups) {
    const double value = evenness(columns * groups, threads) * evenness(panels, groups) /
                         (1 + packing * static_cast<double>(groups));
    if (value > most) most = value, best = groups;
  }
  return best;
}

// dh (rows,C) = dz (rows,V) W for hidden states h: in tiles of dz in bf16 where these fit. Then dh
// is f32 and dense, dz a sum of parts, and blocks of tokens are summed in order.
void head_gradient(Context* ctx, std::span<const GemmInput> parts, int64_t rows, const View& h,
                   const View& w, const GemmOutput& dh);

// Some tokens of dw (V,C) += dz^T h for some rows of h (M,C), the first of which set them.
void add_head_gradient(Context* ctx, const View& dw, HeadRange tokens, const GemmInput& dz,
                       const View& h, HeadRange rows);

// Logits of the rows [first, first + rows) of several hidden states. All are computed the same way,
// row by row of equal operands to the bit, so that a teacher's are those of a student which is its
// equal: also where one head is trained and another copy of it frozen (packed) or in blocks.
template <typename A>
void head_logits(Context* ctx, std::span<const LogitsOf<A>> products, int64_t first, int64_t rows);

}  // namespace balora
