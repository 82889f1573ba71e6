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

// attention.cc: q (N,H,D), k, v (N,Hkv,D), cu_seqlens (B+1), lengths (B) i32 -> (N,H,D)
struct AttentionOptions {
  double scale;
  double softcap;  // 0: none
  int64_t window;  // 0: none
  bool causal;
};
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens,
                 const std::optional<Tensor>& lengths, const AttentionOptions& options);

// softmax.cc: x (...,C) -> (...,C)
Tensor softmax(const Tensor& x);
Tensor log_softmax(const Tensor& x);

// cross_entropy.cc: logits (N,V), targets (N) i32 -> (N) or (); reduction none, sum or mean
Tensor cross_entropy(const Tensor& logits, const Tensor& targets, const std::string& reduction);

// matmul.cc: op(a) (...,M,K), op(b) (...,K,N) -> (...,M,N)
Tensor matmul(const Tensor& a, const Tensor& b, bool transpose_a, bool transpose_b);

// linear.cc: x, x_adapter (...,I), weights (O,I), biases (O), a (R,I), b (O,R) -> one (...,O) a weight
std::vector<Tensor> linear_group(const Tensor& x, const std::optional<Tensor>& x_adapter,
                                 const std::vector<Tensor>& weights,
                                 const std::vector<std::optional<Tensor>>& biases,
                                 const std::vector<Tensor>& a, const std::vector<Tensor>& b,
                                 const std::vector<double>& scales,
                                 const std::vector<int64_t>& targets);

// Declared here because the tape needs them; see their files.
Tensor contiguous(const Tensor& x);
Tensor cast(const Tensor& x, DType dtype);
Tensor full(Engine& engine, const Shape& shape, double value, DType dtype);

}  // namespace balora
