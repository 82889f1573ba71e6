// Attention for what the tensor cores do not take: f32, f64, heads of more than 256 channels.
#pragma once
#include "attention.cuh"

namespace balora::cuda::attention {

template <typename T>
struct PlainForward {
  Heads<const T> q, k, v;
  Heads<T> out;
  Acc<T>* lse;  // (N,H)
  Tiles tiles;  // set by plain_forward
  Geometry<Acc<T>> g;
};
template <typename T>
void plain_forward(Context* ctx, PlainForward<T> operands, const View* cu_seqlens,
                   const View* lengths, int64_t n);

template <typename T>
struct PlainBackward {
  Heads<const T> dout, q, k, v;
  Heads<T> dq, dk, dv;
  const Acc<T>* lse;    // (N,H)
  const Acc<T>* delta;  // (N,H)
  Tiles tiles;          // set by plain_backward
  Geometry<Acc<T>> g;
};
template <typename T>
void plain_backward(Context* ctx, PlainBackward<T> operands, const View* cu_seqlens,
                    const View* lengths, int64_t n);

}  // namespace balora::cuda::attention
