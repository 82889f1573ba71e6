// Exchanges with the position tables (relative_rows.h) in AVX-512 instructions, for blocks of 16
// queries and 16 keys of f32. Only where there is AVX-512.
#pragma once
#include "kernels/cpu/attention/relative_rows.h"
#include "kernels/cpu/products/tiles_target.h"

#ifdef BALORA_TILES
namespace balora::relative::avx512 {

void add_of_queries(const PositionTile& block, const float* of_queries, float* scores, int64_t ld);
void add_of_keys(const PositionTile& block, const float* of_keys, float* scores, int64_t ld);
void sum_of_queries(const PositionTile& block, const float* ds, int64_t ld, float* of_queries);
void sum_of_keys(const PositionTile& block, const float* ds, int64_t ld, float* of_keys);

}  // namespace balora::relative::avx512
#endif
