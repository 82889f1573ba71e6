// Declarations of every op, in the order of the files in ops/. What an op computes stands in its file.
// Dimensions: B batch, T time, N rows, C channels, V vocabulary, H heads, D head size, F mlp width, R rank, L layers.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace balora {

// rms_norm.cc: x (...,C), weight (C) -> (...,C)
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps, double weight_offset,
                bool cast_before_weight);

// Declared here because the tape needs them; see their files.
Tensor contiguous(const Tensor& x);
Tensor cast(const Tensor& x, DType dtype);
Tensor full(Engine& engine, const Shape& shape, double value, DType dtype);

}  // namespace balora
