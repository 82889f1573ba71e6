// Declarations of every op, in the order of the files in ops/. What an op computes stands in its
// file. Dimensions: B batch, T time, N rows, C channels, V vocabulary, H heads, D head size, F mlp
// width, R rank, L layers.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "tensor/tensor.h"

namespace balora {

// rms_norm.cc: x (...,C), weight (C) -> (...,C)
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps, double weight_offset,
                bool cast_before_weight);
// x, residual (...,C), weight (C) -> sum = x + residual, the norm of sum
std::tuple<Tensor, Tensor> rms_norm_add(const Tensor& x, const Tensor& residual,
                                        const Tensor& weight, double eps, double weight_offset,
                                        bool cast_before_weight);

// layer_norm.cc: x (...,C), weight, bias (C) -> (...,C)
Tensor layer_norm(const Tensor& x, const std::optional<Tensor>& weight,
                  const std::optional<Tensor>& bias, double eps);

// gated.cc: gate, up (...,F) -> (...,F); activation silu, gelu or gelu_tanh
Tensor gated(const Tensor& gate, const Tensor& up, const std::string& activation);

// rope.cc: x (N,H,D), cosine, sine (P,Drot/2), positions (N) i32 -> (N,H,D)
Tensor rope(const Tensor& x, const Tensor& cosine, const Tensor& sine, const Tensor& positions);

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
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v,
                 const AttentionSegments& segments, const AttentionOptions& options);

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

// softmax.cc: x (...,C) -> (...,C)
Tensor softmax(const Tensor& x);
Tensor log_softmax(const Tensor& x);

// cross_entropy.cc: logits (N,V), targets (N) i32 -> (N) or (); reduction none, sum or mean
Tensor cross_entropy(const Tensor& logits, const Tensor& targets, const std::string& reduction);

// matmul.cc: op(a) (...,M,K), op(b) (...,K,N) -> (...,M,N)
Tensor matmul(const Tensor& a, const Tensor& b, bool transpose_a, bool transpose_b);

// linear.cc: x, x_adapter (...,I) -> one (...,O) a linear
struct LowRankFactors {
  Tensor a, b;  // (R,I), (O,R)
};
struct LowRankPart {
  Tensor a, b;
  std::optional<LowRankFactors> frozen;  // its start, which is subtracted
  double scale;
  bool is_change;
};
struct LinearLayer {
  Tensor weight;                       // (O,I)
  std::optional<Tensor> bias;          // (O)
  std::optional<Tensor> output_scale;  // (O) in the accumulator type
  std::vector<LowRankPart> low_rank;
};
std::vector<Tensor> linear_group(const Tensor& x, const std::optional<Tensor>& x_adapter,
                                 const std::vector<LinearLayer>& linears);

// Declared here because the tape needs them; see their files.
// convert.cc
Tensor contiguous(const Tensor& x);
Tensor cast(const Tensor& x, DType dtype);
Tensor to_device(const Tensor& x, Engine& engine);  // x itself where it is there already

// create.cc; random values depend on (seed, stream, index) only
Tensor full(Engine& engine, const Shape& shape, double value, DType dtype);
Tensor arange(Engine& engine, double start, double stop, double step, DType dtype);
Tensor random_uniform(Engine& engine, const Shape& shape, double low, double high, int64_t seed,
                      int64_t stream, DType dtype);
Tensor random_normal(Engine& engine, const Shape& shape, double mean, double deviation,
                     int64_t seed, int64_t stream, DType dtype);
Tensor random_words(Engine& engine, int64_t count, int64_t seed, int64_t stream);  // i64

// unary.cc: elementwise functions by name; clamp to [low, high]; affine a*x + b
Tensor unary(const Tensor& x, const std::string& name);
Tensor clamp(const Tensor& x, double low, double high);
Tensor affine(const Tensor& x, double a, double b);

// binary.cc: operands that broadcast, of one dtype; comparisons give u8
Tensor binary(const Tensor& a, const Tensor& b, const std::string& name);
Tensor compare(const Tensor& a, const Tensor& b, const std::string& name);
Tensor where(const Tensor& condition, const Tensor& a, const Tensor& b);
Tensor is_finite(const Tensor& x);
Tensor all_finite(const std::vector<Tensor>& tensors);  // () u8

// shape.cc: views where the layout allows
Tensor reshape(const Tensor& x, const Shape& shape);  // one extent may be -1
Tensor permute(const Tensor& x, const std::vector<int64_t>& order);
Tensor expand(const Tensor& x, const Shape& shape);
Tensor slice(const Tensor& x, int64_t axis, int64_t start, int64_t stop, int64_t step);
std::vector<Tensor> split(const Tensor& x, const std::vector<int64_t>& sizes, int64_t axis);
Tensor concat_tensors(const std::vector<Tensor>& parts, int64_t axis);

// reduce.cc: over the given axes (none given: all)
Tensor sum(const Tensor& x, const std::vector<int64_t>& axes, bool keep_dims);
Tensor mean(const Tensor& x, const std::vector<int64_t>& axes, bool keep_dims);
Tensor logsumexp(const Tensor& x, const std::vector<int64_t>& axes, bool keep_dims);
Tensor variance(const Tensor& x, const std::vector<int64_t>& axes, bool keep_dims,
                double correction);
Tensor max(const Tensor& x, const std::vector<int64_t>& axes, bool keep_dims);
Tensor min(const Tensor& x, const std::vector<int64_t>& axes, bool keep_dims);
Tensor argmax(const Tensor& x, int64_t axis, bool keep_dims);  // i32, the first of equals
Tensor argmin(const Tensor& x, int64_t axis, bool keep_dims);

// index.cc: indices i32 or i64
Tensor embedding(const Tensor& weight, const Tensor& ids);  // weight (V,C), ids (...) -> (...,C)
Tensor index_select(const Tensor& x, const Tensor& rows);   // x (N,...), rows (M) -> (M,...)
Tensor gather(const Tensor& x, const Tensor& index, int64_t axis);
Tensor scatter_add(const Tensor& x, const Tensor& index, const Tensor& source, int64_t axis);
std::tuple<Tensor, Tensor> top_k(const Tensor& x,
                                 int64_t k);  // x (...,C) -> values, columns i32 (...,k)

// column_scale.cc: x (...,C), scale (C) in the accumulator type, bias (C) -> x * scale + bias
Tensor column_scale(const Tensor& x, const Tensor& scale, const std::optional<Tensor>& bias);

// row_norm.cc: ||weight + sum scale (b a - b0 a0)|| by rows, without a gradient: (O)
Tensor row_norm(const Tensor& weight, const std::vector<LowRankPart>& parts);

// dropout.cc
Tensor dropout(const Tensor& x, double p, int64_t seed, int64_t stream);

// in_place.cc: updates without gradients; coefficient is a () f64 on the device
void copy_in_place(Tensor x, const Tensor& source);
void fill_in_place(Tensor x, double value);
void add_in_place(Tensor x, const Tensor& source, double alpha);
void scale_in_place(Tensor x, const Tensor& coefficient);
// Lists of one length; rates (3) f64 each
void adamw_steps(std::vector<Tensor> params, const std::vector<Tensor>& grads,
                 std::vector<Tensor> m, std::vector<Tensor> v, const std::vector<Tensor>& rates,
                 const std::vector<double>& weight_decays, const std::optional<Tensor>& coefficient,
                 double beta1, double beta2, double eps);
void sgd_step(Tensor param, const Tensor& grad, std::optional<Tensor> buffer,
              const std::optional<Tensor>& coefficient, double lr, double momentum,
              double dampening, double weight_decay, bool nesterov, bool first);
// adafactor.cc
void adafactor_step(Tensor param, const Tensor& grad, Tensor row, std::optional<Tensor> column,
                    std::optional<Tensor> m, const std::optional<Tensor>& coefficient, double lr,
                    double beta1, double beta2, double eps, double clip, double weight_decay,
                    double scale_floor);
Tensor grad_norm(const std::vector<Tensor>& grads,
                 const std::string& kind);  // () f64; kind 1, 2 or inf
Tensor clip_coefficient(const Tensor& norm, double max_norm);

}  // namespace balora
