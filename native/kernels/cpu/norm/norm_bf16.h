// RMSNorm of one row of bf16 (norm.cc) in AVX512-BF16 instructions. Only where tiles_ready().
#pragma once
#include <cstdint>

#include "tensor/dtype.h"

namespace balora {

struct RmsNormRow {
  const bf16* weight;
  int64_t channels;
  float eps, weight_offset;
  bool cast_before_weight;
};

// y = the norm of x; returns rstd.
float rms_norm_row_bf16(const RmsNormRow& norm, const bf16* x, bf16* y);
// sum = x + residual first, y its norm.
float rms_norm_add_row_bf16(const RmsNormRow& norm, const bf16* x, const bf16* residual, bf16* sum,
                            bf16* y);
// dx, with dsum added where it is not null.
void rms_norm_backward_row_bf16(const RmsNormRow& norm, const bf16* dy, const bf16* dsum,
                                const bf16* x, float rstd, bf16* dx);

}  // namespace balora
