#include "kernels/cpu/products/tile_gemm.h"

#include "kernels/cpu/products/tile_block.h"
#include "kernels/cpu/runtime/implementation.h"

namespace balora {
namespace {

template <typename T>
void multiply_plain(const TileOperands<T>& o) {
  tile_block::product<16, 4>(o);
}

template <typename T>
using WideTiles = void (*)(const TileOperands<T>&);

constexpr Core<WideTiles<float>> kF32[] = {
    BALORA_X86("avx512", platform::kAvx512, x86::multiply_avx512),
    BALORA_X86("avx2", platform::kAvx2, x86::multiply_avx2),
    {"plain", 0, multiply_plain},
};
constexpr Core<WideTiles<double>> kF64[] = {
    BALORA_X86("avx512", platform::kAvx512, x86::multiply_avx512),
    BALORA_X86("avx2", platform::kAvx2, x86::multiply_avx2),
    {"plain", 0, multiply_plain},
};

struct PairTiles {
  void (*multiply)(const TileOperands<bf16, float>&) = nullptr;  // null: not here
  int64_t columns = 16, step = 8;
  void (*open)() = nullptr;  // on each thread before its first product, or null
  void (*close)() = nullptr;
};
constexpr Core<PairTiles> kBf16[] = {
    BALORA_X86("amx", platform::kAmx,
               {x86::multiply_amx, kTileUnit, kTileUnit, x86::open_amx, x86::close_amx}),
    BALORA_X86("avx512_bf16", platform::kBf16, {x86::multiply_avx512}),
    {"none", 0, {}},
};

const PairTiles& pairs() {
  static const PairTiles& core = first_core(kBf16).run;
  return core;
}

}  // namespace

BALORA_IMPLEMENTATIONS(tile_product_f32, kF32)
BALORA_IMPLEMENTATIONS(tile_product_f64, kF64)
BALORA_IMPLEMENTATIONS(tile_product_bf16, kBf16)

void tile_gemm(const TileOperands<float>& o) {
  static const WideTiles<float> multiply = first_core(kF32).run;
  multiply(o);
}
void tile_gemm(const TileOperands<double>& o) {
  static const WideTiles<double> multiply = first_core(kF64).run;
  multiply(o);
}
void tile_gemm(const TileOperands<bf16, float>& o) {
  pairs().multiply(o);
}

template <>
int64_t tile_columns<bf16>() {
  return pairs().columns;
}
template <>
int64_t tile_step<bf16>() {
  return pairs().step;
}

bool tile_gemm_has_bf16() {
  return pairs().multiply != nullptr;
}

TileScope::TileScope() {
  if (pairs().open) pairs().open();
}
TileScope::~TileScope() {
  if (pairs().close) pairs().close();
}

}  // namespace balora
