// Operands of linear layers (kernels.def has the rules).
#pragma once
#include <stdint.h>

#include "tensor/view.h"

#ifdef __cplusplus
extern "C" {
#endif

// Formats of a weight's values; kernels refuse a format that they do not know.
enum { BALORA_WEIGHT_DENSE = 0, BALORA_WEIGHT_ENCODED = 1 };

// How products with frozen weights are computed: in the activations' type, or in int8, the inputs
// of a weight as they are or rotated. Other weights take no part in that.
enum { BALORA_INT8_OFF = 0, BALORA_INT8_PLAIN = 1, BALORA_INT8_ROTATED = 2 };

typedef struct balora_weight {
  const balora_view* dense;  // (O,I) of the activations' type, if format is BALORA_WEIGHT_DENSE
  int32_t format;
  // (O,I), whose values are decoded to the activations' type, if it is BALORA_WEIGHT_ENCODED
  const balora_view* encoded;
} balora_weight;

// How a low-rank part is computed beside bf16; in other types nothing of it is rounded.
//   EXACT: of each factor both halves, 16 bits together
//   CHANGE: B A is a small change of W, no difference of large terms, of which 2^-9 may be lost
//   SINCE_START: by what has changed since its start, of which 2^-9 may be lost
enum { BALORA_LOW_RANK_EXACT = 0, BALORA_LOW_RANK_CHANGE = 1, BALORA_LOW_RANK_SINCE_START = 2 };

// A low-rank part of a linear: it adds scale * (x A^T) B^T or, since its start (the frozen
// first values A0 and B0 of a pair that W contains already), scale * ((x A^T) B^T - (x A0^T) B0^T).
// A, B, A0, B0 and U = x A^T are f32 (f64 beside f64).
typedef struct balora_low_rank {
  const balora_view* a;        // (R,I)
  const balora_view* b;        // (O,R)
  const balora_view* start_a;  // (R,I), null unless `form` is SINCE_START
  const balora_view* start_b;  // (O,R), likewise
  const balora_view* u;        // (N,R): written by forward, read by backward (null there if db is)
  const balora_view* da;       // (R,I) written by backward, or null
  const balora_view* db;       // (O,R) written by backward, or null
  double scale;
  int32_t form;  // BALORA_LOW_RANK_*
} balora_low_rank;

// One of the linears that share an input, rounded once:
//   y = output_scale * (x W^T + its change and parts) + bias
typedef struct balora_linear {
  balora_weight weight;
  // (O,I) of x's type, or null: a change of W, which reads what the parts read. Not read by
  // backward, whose caller adds it to W or asks for its products apart.
  const balora_view* weight_change;
  const balora_view* bias;          // (O) of x's type, or null; not read by backward
  const balora_view* output_scale;  // (O) f32 (f64 for f64), or null: 1 (DoRA's factor)
  // (N,O) of x's type: the sum before output_scale, rounded, for the gradient of output_scale.
  // Written by forward, or null; not read by backward.
  const balora_view* unscaled;
  // (N,O); in backward the gradient of the sum before output_scale, null for an unused output
  const balora_view* y;
  const balora_low_rank* parts;
  int32_t part_count;
} balora_linear;

// Groups of rows (experts): where row_offsets (G+1) i32 is given, which rises from 0 to N, rows
// [row_offsets[g], row_offsets[g+1]) meet what stands at g of each linear's own operands and of
// their gradients, which all have one dimension more in front: weight (G,O,I), bias (G,O),
// a (G,R,I), b (G,O,R). Then there is no output_scale, and nothing is in int8. Groups may be empty.

// For each of the linears that share x, with x_adapter where it is given and x else, C the change
// of the weight, summed over the parts:
//   y = output_scale * (x W^T + x_adapter C^T + sum of scale * x_adapter (B A - B0 A0)^T) + bias
// Rounded once. Weights are of x's type; the CPU packs frozen f32 ones once, unless rows must not
// depend on each other or are in groups.
typedef struct balora_linear_forward {
  const balora_view* x;          // (N,I)
  const balora_view* x_adapter;  // (N,I) the input of changes and parts (dropout); null: x
  const balora_linear* linears;
  int32_t count;  // of linears
  // Non-zero: a row of y is the same bit for bit whichever rows stand beside it.
  int32_t batch_invariant;
  int32_t int8;  // BALORA_INT8_*, of x W^T
  // The rows of x as balora_quantize_rows made them, for products that are in int8; null: not there.
  const balora_view* x_codes;
  const balora_view* x_scales;
  const balora_view* row_offsets;  // (G+1) i32, or null
} balora_linear_forward;

// Gradients of the inputs and the parts; those of linears and parts stand in their structures. dY
// is the gradient of x W^T + the parts; output_scale, bias and weight_change are not read
// (column_scale_backward makes the gradients of the first two and that dY). With dU = scale * dY B:
//   dx = sum of dY W
//   dx_adapter = sum of scale * dY (B A - B0 A0), part of dx without x_adapter
//   da = dU^T x_adapter
//   db = scale * dY^T U
// Outputs are overwritten; null ones are not computed.
typedef struct balora_linear_backward {
  const balora_view* x;           // (N,I); may be null if no da is wanted
  const balora_view* x_adapter;   // (N,I), or null
  const balora_view* dx;          // (N,I), or null
  const balora_view* dx_adapter;  // (N,I), or null
  const balora_linear* linears;
  int32_t count;
  int32_t int8;                    // BALORA_INT8_*, of dY W
  const balora_view* row_offsets;  // (G+1) i32, or null
} balora_linear_backward;

// Gradients of a trained weight and bias.
//   dweight = dy^T x
//   dbias = the sum of dy's rows
typedef struct balora_linear_weight_backward {
  const balora_view* dy;           // (N,O)
  const balora_view* x;            // (N,I); may be null without dweight
  const balora_view* dweight;      // (O,I) f32 (f64 for f64), or null
  const balora_view* dbias;        // (O) f32 (f64 for f64), or null
  const balora_view* row_offsets;  // (G+1) i32, or null
} balora_linear_weight_backward;

// Rows of an activation in int8: x R = scale * (codes - 128), R the rotation of blocks of 64
// columns (32 where 64 does not divide their number, none where 32 does not) by the Hadamard matrix
// in Sylvester's order over the root of its size. The scale is the largest magnitude of the row of
// x R over 127; it is NaN where a value is not finite, and 0 where all are below 2^-120.
typedef struct balora_quantize_rows {
  const balora_view* x;  // (N,I), of any float type but f64
  // (N up to a multiple of 32, I up to one of 64) u8, 128 where x has no value
  const balora_view* codes;
  const balora_view* scales;  // (N up to a multiple of 32) f32, 0 where x has no row
} balora_quantize_rows;

// The values of such rows, rounded once: x = (scale * (codes - 128)) R.
typedef struct balora_dequantize_rows {
  const balora_view* codes;
  const balora_view* scales;
  const balora_view* x;  // (N,I)
} balora_dequantize_rows;

// norm = || weight + sum over parts of scale * (B A - B0 A0) ||, by rows (DoRA).
typedef struct balora_row_norm {
  balora_weight weight;
  const balora_low_rank* parts;
  int32_t part_count;
  const balora_view* norm;  // (O) f32 (f64 for f64)
} balora_row_norm;

#ifdef __cplusplus
}  // extern "C"

#include <span>
#include <stdexcept>
#include <string>

namespace balora {
using LinearOperands = balora_linear;
using LowRankOperands = balora_low_rank;

// The values of a weight, for kernels that know dense weights only.
inline const View& dense(const balora_weight& weight) {
  if (weight.format != BALORA_WEIGHT_DENSE || !weight.dense) {
    throw std::runtime_error("no dense weight, but one of format " + std::to_string(weight.format));
  }
  return *weight.dense;
}

// The weight as a view whose encoding says which of the two formats it has.
inline const View& dense_or_encoded(const balora_weight& weight) {
  if (weight.format == BALORA_WEIGHT_ENCODED && weight.encoded) return *weight.encoded;
  return dense(weight);
}
inline balora_weight weight_of(const View& view) {
  if (view.encoding) return {.format = BALORA_WEIGHT_ENCODED, .encoded = &view};
  return {.dense = &view};
}

// The parts of a linear, or of a row_norm.
template <typename O>
std::span<const balora_low_rank> parts_of(const O& o) {
  return {o.parts, static_cast<size_t>(o.part_count)};
}
}  // namespace balora
#endif

// The rows of this family (kernels.def).
#define BALORA_LINEAR_KERNELS(KERNEL) \
  KERNEL(linear_forward)              \
  KERNEL(linear_backward)             \
  KERNEL(linear_weight_backward)      \
  KERNEL(quantize_rows)               \
  KERNEL(dequantize_rows)             \
  KERNEL(row_norm)
