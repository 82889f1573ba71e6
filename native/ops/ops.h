// Declarations of every op. Most are rows of a family's ops.def, OP(name, (parameters), grad,
// result), from which the binding makes the JavaScript function, too; an op whose parameters
// JavaScript passes in another form is declared below and bound by hand in native/binding. The file
// of an op says what it computes. Dimensions: B batch, T time, N rows, C channels, V vocabulary, H
// heads, D head size, F mlp width, R rank, L layers.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "tensor/tensor.h"

namespace balora {

#define OP(name, parameters, grad, ...) __VA_ARGS__ name parameters;
#include "ops/ops.def"
#undef OP

// attention.cc: q (M,H,D), k, v (N,Hkv,D) -> (M,H,D)
struct AttentionSegments {
  Tensor cu_seqlens;                 // (B+1) i32, of the N rows
  std::optional<Tensor> cu_queries;  // (B+1) i32, of the M rows of q; M is N without it
  std::optional<Tensor> lengths;     // (B) i32
};
struct AttentionOptions {
  double scale;
  double softcap;  // 0: none
  int64_t window;  // 0: none
  bool causal;
};
// sinks (H) f32 (f64 for f64)
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v,
                 const std::optional<Tensor>& sinks, const AttentionSegments& segments,
                 const AttentionOptions& options);

// relative_attention.cc: queries (N,H,D) of one sequence attend to keys and values (M,H,D) of
// another, or the same one. Relative position r = key - query + (R-1)/2 adds bias[r] (R,H) to the
// scaled score; with p = index[r] (R) i32, q_t position_k[p] and k_j position_q[p] (P,H,D) are
// added before the scale.
struct RelativeOperands {
  Tensor q, k, v;
  Tensor cu_queries, cu_keys;                        // (B+1) i32
  std::optional<Tensor> query_lengths, key_lengths;  // (B) i32
  std::optional<Tensor> bias, position_k, position_q, index;
};
Tensor relative_attention(const RelativeOperands& operands, double scale, bool causal);

// kv_cache.cc: a cache of keys and values as one layer sees it (kernels/operands/attention.h)
struct KvCache {
  std::vector<Tensor> chunks;  // (blocks,layers,2,Hkv,BLOCK,Dp) each
  int64_t layer;
  Tensor cu_rows;                      // (B+1) i32, of the N rows of the call
  Tensor lengths;                      // (B) i32
  Tensor tables;                       // (B,W) i32
  std::optional<Tensor> first_blocks;  // (B) i32
};
// k, v (N,Hkv,D) into the chunks, in place
void cache_append(const Tensor& k, const Tensor& v, const KvCache& cache);
// q (N,H,D), bias (R,H) by distance, sinks as of attention -> (N,H,D)
Tensor cached_attention(const Tensor& q, const KvCache& cache, const std::optional<Tensor>& bias,
                        const std::optional<Tensor>& sinks, const AttentionOptions& options);

// linear.cc: x, x_adapter (...,I), row_offsets (G+1) i32 -> one (...,O) a linear
struct LowRankFactors {
  Tensor a, b;  // (R,I), (O,R)
};
struct LowRankPart {
  Tensor a, b;
  std::optional<LowRankFactors> start;  // which is subtracted
  double scale;
  std::string form;  // "exact", "change" or "sinceStart"
};
struct LinearLayer {
  Tensor weight;                        // (O,I), with row_offsets all of these have a G in front
  std::optional<Tensor> bias;           // (O)
  std::optional<Tensor> output_scale;   // (O) in the accumulator type
  std::optional<Tensor> weight_change;  // (O,I) of x's type
  std::vector<LowRankPart> low_rank;
};
std::vector<Tensor> linear_group(const Tensor& x, const std::optional<Tensor>& x_adapter,
                                 const std::optional<Tensor>& row_offsets,
                                 const std::vector<LinearLayer>& linears);
// row_norm.cc: weight (O,I) -> ||weight + sum scale (b a - b0 a0)|| by rows (O), without a gradient
Tensor row_norm(const Tensor& weight, const std::vector<LowRankPart>& parts);

// convert.cc
// The values of x off the tape, in its own type: made of its blocks where it is in blocks.
Tensor decoded(const Tensor& x);
Tensor to_device(const Tensor& x, Engine& engine);  // x itself where it is there already

// in_place.cc, adafactor.cc
struct AdamwParameters {  // lists of one length
  std::vector<Tensor> params, grads, m, v;
  std::vector<Tensor> rates;  // (3) f64 each
  std::vector<double> weight_decays;
};
struct AdamwOptions {
  double beta1, beta2, eps;
};
void adamw_steps(const AdamwParameters& parameters, const std::optional<Tensor>& coefficient,
                 const AdamwOptions& options);
struct SgdOptions {
  double lr, momentum, dampening, weight_decay;
  bool nesterov;
  bool first;  // the buffer becomes the gradient
};
void sgd_step(Tensor param, const Tensor& grad, std::optional<Tensor> buffer,
              const std::optional<Tensor>& coefficient, const SgdOptions& options);

// adafactor.cc
struct AdafactorMoments {
  Tensor row;                    // (...,R); without a column: the whole second moment
  std::optional<Tensor> column;  // (...,C)
  std::optional<Tensor> m;       // the first moment
};
struct AdafactorOptions {
  double lr, beta1, beta2, eps, clip, weight_decay;
  double scale_floor;  // negative: the rate is not scaled by RMS(param)
};
void adafactor_step(Tensor param, const Tensor& grad, AdafactorMoments moments,
                    const std::optional<Tensor>& coefficient, const AdafactorOptions& options);

}  // namespace balora
