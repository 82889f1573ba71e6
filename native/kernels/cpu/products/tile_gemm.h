// Matrix products of small packed tiles, single-threaded, for kernels that keep their operands in
// cache (attention).
//   C (m,n) = A (m,k) B (k,n), or += with accumulate; C is f32 (f64 for f64). n is a multiple of
//   tile_columns() (of 8 for f64), m and k are of tile_step() (for f32 and f64 k is any); both
//   divide kTileUnit.
// A and C are row-major, rows lda and ldc apart. B is in "pair" order: row-major for f32 and f64;
// for bf16 rows 2i and 2i+1 are interleaved, [k/2][ldb][2], which is what AVX512-BF16 and AMX
// multiply. It is dense unless ldb says that it is part of a wider one. B and C are
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

// How A lies in memory: by rows lda apart, or by columns.
enum class TileLeft { kRows, kColumns };

template <typename E, typename A = E>
struct TileOperands {
  TileShape shape;
  const E* a;
  int64_t lda;
  const E* b;
  int64_t ldb;
  A* c;
  int64_t ldc;
  bool accumulate;
  TileLeft left = TileLeft::kRows;
};

void tile_gemm(const TileOperands<float>& o);
void tile_gemm(const TileOperands<double>& o);
// By rows, and only where tile_gemm_has_bf16() says so; elsewhere widen the tiles.
void tile_gemm(const TileOperands<bf16, float>& o);
template <typename E, typename A>
void tile_gemm(TileShape shape, const E* a, int64_t lda, const E* b, int64_t ldb, A* c, int64_t ldc,
               bool accumulate) {
  tile_gemm(TileOperands<E, A>{shape, a, lda, b, ldb, c, ldc, accumulate});
}
// The same with A (k,m), rows lda apart: what its columns are to be multiplied with needs no
// transposed copy of them. There is none of bf16, which is multiplied in pairs of k.
template <typename E>
void tile_gemm_columns(TileShape shape, const E* a, int64_t lda, const E* b, int64_t ldb, E* c,
                       int64_t ldc, bool accumulate) {
  tile_gemm(TileOperands<E>{shape, a, lda, b, ldb, c, ldc, accumulate, TileLeft::kColumns});
}
template <typename E, typename A>
void tile_gemm(TileShape shape, const E* a, int64_t lda, const E* b, A* c, int64_t ldc,
               bool accumulate) {
  tile_gemm(shape, a, lda, b, shape.n, c, ldc, accumulate);
}

// The unit of the columns of a product.
template <typename E>
int64_t tile_columns() {
  return 16;
}
template <>
int64_t tile_columns<bf16>();

// The unit of the rows of a product and of its depth.
template <typename E>
int64_t tile_step() {
  return 8;
}
template <>
int64_t tile_step<bf16>();

bool tile_gemm_has_bf16();

// Must be alive on a thread around its bf16 products: AMX needs the thread's tile shapes set.
class TileScope {
 public:
  TileScope();
  ~TileScope();
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

namespace x86 {
void multiply_avx2(const TileOperands<float>& o);
void multiply_avx2(const TileOperands<double>& o);
void multiply_avx512(const TileOperands<float>& o);
void multiply_avx512(const TileOperands<double>& o);
void multiply_avx512(const TileOperands<bf16, float>& o);
void multiply_amx(const TileOperands<bf16, float>& o);
void open_amx();
void close_amx();
}  // namespace x86

}  // namespace balora
