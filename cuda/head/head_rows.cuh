// The rows of a chunk of the fused head losses, one block a row: terms, and the gradient of
// the logits.
#pragma once
#include "runtime/common.cuh"

namespace balora::cuda {

// A chunk of rows, the first of which is row `first` of the call.
template <typename A>
struct HeadArgs {
  A* z;
  const A* y;             // null, and no offsets: no consistency term
  const double* offsets;  // (M) T H(q) + h mu of a teacher that came as its summary, or null
  bf16* rounded;          // where dz goes; null: over z
  int64_t stride, vocabulary, first;
  const int32_t* targets;  // may be null, as regularized
  const uint8_t* regularized;
  const double* scales;  // (3) or null, see scaled_options
  double* terms;         // (M,3), of all rows
  HeadOptions options;
  bool gradient;
  Fault* fault;
  int32_t fault_row;
};

// The options with their scales multiplied by those that lie on the device (null: ones).
__device__ inline HeadOptions scaled_options(HeadOptions options, const double* scales) {
  if (!scales) return options;
  options.task_scale *= scales[BALORA_HEAD_TASK];
  options.consistency_scale *= scales[BALORA_HEAD_CONSISTENCY];
  options.diversity_scale *= scales[BALORA_HEAD_ENTROPY];
  return options;
}

// Writes the terms of `rows` rows and, if wanted, dz. A is float or double; `name` is the table's
// row, for errors.
template <typename A>
void launch_head_rows(Context* ctx, const char* name, const HeadArgs<A>& args, int64_t rows);

}  // namespace balora::cuda
