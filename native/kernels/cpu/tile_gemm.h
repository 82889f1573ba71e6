// Matrix products of small packed tiles, single-threaded, for kernels that keep their operands in
// cache (attention).
//   C (m,n) = A (m,k) B (k,n), or += with accumulate; C is f32 (f64 for f64), every extent a
//   multiple of kTileUnit.
// A is row-major. B is dense in "pair" order: row-major for f32 and f64; for bf16 rows 2i and 2i+1
// are interleaved, [k/2][n][2], which is what AVX512-BF16 and AMX multiply. All pointers are
// aligned to 64 bytes.
#pragma once
#include <cstdint>

#include "tensor/dtype.h"

namespace balora {

constexpr int64_t kTileUnit = 32;

constexpr int64_t tile_padded(int64_t n) {
  return (n + kTileUnit - 1) / kTileUnit * kTileUnit;
}

struct TileShape {
  int64_t m, n, k;
};

void tile_gemm(TileShape shape, const float* a, int64_t lda, const float* b, float* c, int64_t ldc,
               bool accumulate);
void tile_gemm(TileShape shape, const double* a, int64_t lda, const double* b, double* c,
               int64_t ldc, bool accumulate);
// Only where tile_gemm_has_bf16() says so; elsewhere widen the tiles.
void tile_gemm(TileShape shape, const bf16* a, int64_t lda, const bf16* b, float* c, int64_t ldc,
               bool accumulate);

bool tile_gemm_has_bf16();

// Must be alive on a thread around its bf16 products: AMX needs the thread's tile shapes set.
class TileScope {
 public:
  TileScope();
  ~TileScope();
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

}  // namespace balora
