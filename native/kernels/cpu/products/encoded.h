// Values of a weight that stands in blocks (balora_encoding of tensor/view.h), decoded where they
// are used and rounded to the weight's type as a dense copy of it would be.
#pragma once
#include <algorithm>
#include <cstdint>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/kernel_table.h"
#include "tensor/dtype.h"

namespace balora {

// The values [first, first + count) of a row-major view with an encoding, on the calling thread. T
// is the view's type, or a wider one: the values are rounded to the view's all the same.
template <typename T>
void decode_values(const View& view, int64_t first, int64_t count, T* out);

// Rows [begin, end) of a matrix, dense in the view's own type or f32, by all threads.
void decode_rows(Context* ctx, const View& view, int64_t begin, int64_t end, int32_t type,
                 void* out);

}  // namespace balora
