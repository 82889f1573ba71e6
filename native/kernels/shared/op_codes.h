// The codes by which one kernel row serves a family of elementwise ops. They cross the device
// plug-in boundary: append only, before the number of them. A device says how many it knows, and a
// kernel refuses a code beyond (guard.h).
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum balora_binary_op {
  BALORA_ADD = 0,
  BALORA_SUB = 1,
  BALORA_MUL = 2,
  BALORA_DIV = 3,
  BALORA_POW = 4,
  BALORA_MAXIMUM = 5,
  BALORA_MINIMUM = 6,
  BALORA_BINARY_OPS
} balora_binary_op;

typedef enum balora_compare_op {
  BALORA_EQUAL = 0,
  BALORA_NOT_EQUAL = 1,
  BALORA_LESS = 2,
  BALORA_LESS_EQUAL = 3,
  BALORA_GREATER = 4,
  BALORA_GREATER_EQUAL = 5,
  BALORA_COMPARE_OPS
} balora_compare_op;

typedef enum balora_unary_op {
  BALORA_NEG = 0,
  BALORA_ABS = 1,
  BALORA_EXP = 2,
  BALORA_LOG = 3,
  BALORA_SQRT = 4,
  BALORA_RSQRT = 5,
  BALORA_SQUARE = 6,
  BALORA_SIN = 7,
  BALORA_COS = 8,
  BALORA_TANH = 9,
  BALORA_SIGMOID = 10,
  BALORA_RELU = 11,
  BALORA_SILU = 12,
  BALORA_GELU = 13,       // x * Phi(x), Phi through erf
  BALORA_GELU_TANH = 14,  // the tanh approximation of it
  BALORA_SOFTPLUS = 15,
  BALORA_CLAMP = 16,   // to [a, b]
  BALORA_AFFINE = 17,  // a * x + b
  BALORA_UNARY_OPS
} balora_unary_op;

// Each of them once, for the cases of a switch.
#define BALORA_EACH_UNARY_OP(CASE) \
  CASE(BALORA_NEG)                 \
  CASE(BALORA_ABS)                 \
  CASE(BALORA_EXP)                 \
  CASE(BALORA_LOG)                 \
  CASE(BALORA_SQRT)                \
  CASE(BALORA_RSQRT)               \
  CASE(BALORA_SQUARE)              \
  CASE(BALORA_SIN)                 \
  CASE(BALORA_COS)                 \
  CASE(BALORA_TANH)                \
  CASE(BALORA_SIGMOID)             \
  CASE(BALORA_RELU)                \
  CASE(BALORA_SILU)                \
  CASE(BALORA_GELU)                \
  CASE(BALORA_GELU_TANH)           \
  CASE(BALORA_SOFTPLUS)            \
  CASE(BALORA_CLAMP)               \
  CASE(BALORA_AFFINE)

typedef enum balora_reduce_op {
  BALORA_SUM = 0,
  BALORA_MEAN = 1,
  BALORA_LOGSUMEXP = 2,
  BALORA_VARIANCE = 3,
  BALORA_REDUCE_OPS
} balora_reduce_op;

// Gated activations.
typedef enum balora_activation {
  BALORA_GATE_SILU = 0,
  BALORA_GATE_GELU = 1,
  BALORA_GATE_GELU_TANH = 2,
  BALORA_ACTIVATIONS
} balora_activation;

// The target of a row that does not count.
enum { BALORA_IGNORED_TARGET = -100 };

// Reductions of a loss by row. The mean is over the rows that count.
typedef enum balora_reduction {
  BALORA_REDUCTION_NONE = 0,
  BALORA_REDUCTION_SUM = 1,
  BALORA_REDUCTION_MEAN = 2,
  BALORA_REDUCTIONS
} balora_reduction;

typedef enum balora_norm_kind {
  BALORA_NORM_1 = 0,
  BALORA_NORM_2 = 1,
  BALORA_NORM_INF = 2,
  BALORA_NORM_KINDS
} balora_norm_kind;

// How many of each a device's kernels know. A family that is added stands at the end of both.
typedef struct balora_known_codes {
  int32_t binary_ops;
  int32_t compare_ops;
  int32_t unary_ops;
  int32_t reduce_ops;
  int32_t activations;
  int32_t reductions;
  int32_t norm_kinds;
} balora_known_codes;

#define BALORA_KNOWN_CODES                                                      \
  {BALORA_BINARY_OPS,  BALORA_COMPARE_OPS, BALORA_UNARY_OPS, BALORA_REDUCE_OPS, \
   BALORA_ACTIVATIONS, BALORA_REDUCTIONS,  BALORA_NORM_KINDS}

#ifdef __cplusplus
}  // extern "C"
#endif
