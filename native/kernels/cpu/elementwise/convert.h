// Conversion between the float types, row by row, with one rounding to nearest even.
#pragma once
#include <cstdint>

#include "kernels/kernel_table.h"
#include "kernels/shared/rows.h"

namespace balora {

// to[i][j] = from[i][j] for rows x cols elements.
void convert_rows(Context* ctx, const SourceRows& from, const ResultRows& to, int64_t rows,
                  int64_t cols);

// to[i] = from[i] for n elements of two of float, bf16, f16 and double, on the calling thread.
template <typename From, typename To>
void convert_row(const From* from, To* to, int64_t n);

}  // namespace balora
