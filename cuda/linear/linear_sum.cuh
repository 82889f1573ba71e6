// Sums of bf16 products with one f32 accumulation and one rounding: what a linear with low-rank
// parts is, and the gradient of an input that several linears share.
#pragma once
#include <vector>

#include "products/encoded.cuh"
#include "runtime/common.cuh"

namespace balora::cuda {

// A (M,K) row-major; B (K,N) row-major, or stored (N,K) if b_inner. Strides in elements.
struct SumTerm {
  const bf16* a;
  const bf16* b;  // null: it is `encoded`, a weight in blocks
  int64_t a_stride, b_stride;
  int32_t k;
  bool b_inner;
  const View* encoded = nullptr;
  // Set by sum_terms: rows start at 16-byte addresses, and which of a launch's weights in blocks B
  // is (-1: none).
  bool a_aligned = false, b_aligned = false;
  int32_t decoded = -1;
};

// c (M,N) = scale * sum of terms + bias, and `unscaled` that sum itself; all but c may be null, and
// c too where `wide` is given, to which the sum goes in f32. by_rows: no row of c depends on how
// many there are, bit for bit; cuBLAS chooses the order of its sums by that, so it is not asked.
struct SumOutput {
  int64_t m, n;
  bf16* c = nullptr;
  const bf16* bias = nullptr;    // (N)
  const float* scale = nullptr;  // (N)
  bf16* unscaled = nullptr;      // (M,N)
  float* wide = nullptr;         // (M,N)
  bool by_rows = false;
};

// `base` are the products with weights, which cuBLAS may compute; `low_rank` are summed before
// them, so that parts which cancel leave the base alone to the last bit. `panels` is where weights
// in blocks are decoded; the sums of an op share it.
void sum_terms(Context* ctx, const std::vector<SumTerm>& low_rank, const std::vector<SumTerm>& base,
               const SumOutput& out, PanelScratch& panels);

// The product of x (M,K) with a weight, dense or in blocks.
SumTerm weight_term(const View& x, const View& weight, bool b_inner);

}  // namespace balora::cuda
