// Attention for what the tensor cores do not take: f32, f64, heads of more than 256 channels.
#pragma once
#include "attention/attention.cuh"

namespace balora::cuda::attention {

template <typename T>
struct PlainForward {
  Heads<const T> q, k, v;
  Heads<T> out;
  Acc<T>* lse;       // (M,H)
  Tiles tiles = {};  // set by plain_forward
  Geometry<Acc<T>> g;
};
template <typename T>
void plain_forward(Context* ctx, PlainForward<T> operands, const Segments& segments);

template <typename T>
struct PlainBackward {
  Heads<const T> dout, q, k, v;
  Heads<T> dq, dk, dv;
  const Acc<T>* lse;    // (M,H)
  const Acc<T>* delta;  // (M,H)
  Tiles tiles = {};     // set by plain_backward
  Geometry<Acc<T>> g;
};
template <typename T>
void plain_backward(Context* ctx, PlainBackward<T> operands, const Segments& segments);

}  // namespace balora::cuda::attention
