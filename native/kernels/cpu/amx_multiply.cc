// multiply_tiles and packing (amx.h). A block of C is 2 x 2 tiles (32 x 32 f32) that stay in
// registers over the whole of k and over every term; for a panel of 32 rows of A, which stays in
// L1, B's panels stream from L2. A block is rounded and written while the next one multiplies.
// (Software prefetch of A's next rows and of C's lines was tried: 5-10% slower.) Packed B: panels
// of 32 columns; in a panel, for each 32 of k, two tiles of 16 columns; in a tile, 16 rows of (k,
// k+1) pairs. Edges are padded with zeros.
#include "kernels/cpu/amx.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/onednn.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd.h"
#include "tensor/errors.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define BALORA_AMX 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace balora {
namespace {

constexpr int64_t kPanelRows = 32;
constexpr int64_t kStepElements = kTileK * kTileN;  // of B, one step of one panel
constexpr int64_t kCachedBytes = int64_t{1} << 20;  // of B's panels, kept in L2 over all rows

// (k, k+1) of one column.
constexpr uint32_t pair_of(bf16 first, bf16 second) {
  return static_cast<uint32_t>(first.bits) | static_cast<uint32_t>(second.bits) << 16;
}

BALORA_INLINE bf16 half_of(float value, Half half) {
  const bf16 high = to_bf16(value);
  return half == Half::kHigh ? high : to_bf16(value - to_float(high));
}

// Where the pair (k, k+1), k even, of column n stands, in pairs.
BALORA_INLINE int64_t pair_index(int64_t k, int64_t n, int64_t steps) {
  return ((n / kTileN * steps + k / kTileK) * kStepElements +
          n % kTileN / 16 * (kStepElements / 2)) /
             2 +
         k % kTileK / 2 * 16 + n % 16;
}

BALORA_SIMD void pack_row_pair(const FactorLine& a, const FactorLine& b, int64_t n, int64_t begin,
                               int64_t end, uint32_t* to) {
  for (int64_t j = begin; j < end; ++j) {
    const float first = a.data && j < n ? a.scale * a.data[j * a.stride] : 0;
    const float second = b.data && j < n ? b.scale * b.data[j * b.stride] : 0;
    to[j - begin] = pair_of(half_of(first, a.half), half_of(second, b.half));
  }
}

BALORA_SIMD void pack_column(const FactorLine& c, int64_t k, int64_t n, int64_t steps,
                             uint32_t* to) {
  const int64_t padded = steps * kTileK;
  for (int64_t i = 0; i < padded; i += 2) {
    const float first = c.data && i < k ? c.scale * c.data[i * c.stride] : 0;
    const float second = c.data && i + 1 < k ? c.scale * c.data[(i + 1) * c.stride] : 0;
    to[pair_index(i, n, steps)] = pair_of(half_of(first, c.half), half_of(second, c.half));
  }
}

}  // namespace

void pack_tiles(Context* ctx, const bf16* b, int64_t k_stride, int64_t n_stride, int64_t k,
                int64_t n, bf16* tiles) {
  const int64_t steps = round_up(k, kTileK) / kTileK, panels = round_up(n, kTileN) / kTileN;
  auto* to = reinterpret_cast<uint32_t*>(tiles);
  const auto value = [&](int64_t i, int64_t j) {
    return i < k && j < n ? b[i * k_stride + j * n_stride] : bf16{0};
  };
  parallel_for(ctx, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < steps * kTileK; i += 2) {
      for (int64_t j = begin * kTileN; j < end * kTileN; ++j) {
        to[pair_index(i, j, steps)] = pair_of(value(i, j), value(i + 1, j));
      }
    }
  });
}

void pack_factor_rows(Context* ctx, std::span<const FactorLine> rows, int64_t n, bf16* tiles) {
  const auto k = static_cast<int64_t>(rows.size());
  const int64_t steps = round_up(k, kTileK) / kTileK, panels = round_up(n, kTileN) / kTileN;
  auto* to = reinterpret_cast<uint32_t*>(tiles);
  parallel_for(ctx, panels * 2, 4, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      for (int64_t i = 0; i < steps * kTileK; i += 2) {
        const FactorLine a = i < k ? rows[static_cast<size_t>(i)] : FactorLine{};
        const FactorLine b = i + 1 < k ? rows[static_cast<size_t>(i + 1)] : FactorLine{};
        pack_row_pair(a, b, n, tile * 16, tile * 16 + 16, to + pair_index(i, tile * 16, steps));
      }
    }
  });
}

void pack_factor_columns(Context* ctx, std::span<const FactorLine> columns, int64_t k,
                         bf16* tiles) {
  const auto n = static_cast<int64_t>(columns.size());
  const int64_t steps = round_up(k, kTileK) / kTileK;
  parallel_for(ctx, round_up(n, kTileN), 8, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      const FactorLine column = j < n ? columns[static_cast<size_t>(j)] : FactorLine{};
      pack_column(column, k, j, steps, reinterpret_cast<uint32_t*>(tiles));
    }
  });
}

#ifdef BALORA_AMX
namespace {

#define AMX_TARGET \
  __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

// The layout that LDTILECFG reads: palette 1, eight tiles of 16 rows x 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

// One panel of 32 rows of a term.
struct PanelTerm {
  const bf16* a;
  int64_t lda;
  int64_t steps;
  const bf16* tiles;
};

AMX_TARGET void multiply_block(const std::vector<PanelTerm>& terms, int64_t panel) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (const PanelTerm& term : terms) {
    const bf16* a0 = term.a;
    const bf16* a1 = term.a + 16 * term.lda;
    const bf16* b = term.tiles + panel * term.steps * kStepElements;
    const int64_t stride = term.lda * static_cast<int64_t>(sizeof(bf16));
    for (int64_t step = 0; step < term.steps; ++step) {
      _tile_loadd(4, a0, stride);
      _tile_loadd(6, b, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, b + kStepElements / 2, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, a1, stride);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      a0 += kTileK, a1 += kTileK, b += kStepElements;
    }
  }
}

AMX_TARGET void store_tiles(float* c, int64_t ldc) {
  const int64_t stride = ldc * static_cast<int64_t>(sizeof(float));
  _tile_stored(0, c, stride);
  _tile_stored(1, c + 16, stride);
  _tile_stored(2, c + 16 * ldc, stride);
  _tile_stored(3, c + 16 * ldc + 16, stride);
}

AMX_TARGET __m512 load_narrow(const void* from, __mmask16 mask) {
  const __m256i bits = _mm256_maskz_loadu_epi16(mask, from);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// The common case: a whole block, rounded and stored, one line a row.
AMX_TARGET void write_whole(const float* block, bf16* to, int64_t ldc) {
  for (int64_t r = 0; r < kPanelRows; ++r) {
    const __m512 low = _mm512_load_ps(block + r * kTileN);
    const __m512 high = _mm512_load_ps(block + r * kTileN + 16);
    const auto line = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
    _mm512_storeu_si512(to + r * ldc, line);
  }
}

// Writes rows x cols of a block to C, at (row, col), with whatever is added on the way.
AMX_TARGET void write_block(const float* block, const TileOutput& out, int64_t row, int64_t col,
                            int64_t rows, int64_t cols) {
  for (int64_t half = 0; half < cols; half += 16) {
    const auto mask = static_cast<__mmask16>((1u << std::min<int64_t>(cols - half, 16)) - 1);
    const int64_t j = col + half;
    const __m512 bias = out.bias ? _mm512_maskz_loadu_ps(mask, out.bias + j) : _mm512_setzero_ps();
    for (int64_t r = 0; r < rows; ++r) {
      __m512 value = _mm512_load_ps(block + r * kTileN + half);
      if (out.bias) value = _mm512_add_ps(value, bias);
      if (out.addend) {
        const float* addend = out.addend + (row + r) * out.addend_ld + j;
        value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, addend));
      }
      const int64_t at = (row + r) * out.ldc + j;
      if (out.dtype == BALORA_F32) {
        float* to = static_cast<float*>(out.c) + at;
        if (out.accumulate) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, to));
        _mm512_mask_storeu_ps(to, mask, value);
      } else {
        bf16* to = static_cast<bf16*>(out.c) + at;
        if (out.accumulate) value = _mm512_add_ps(value, load_narrow(to, mask));
        const auto narrow = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value));
        _mm256_mask_storeu_epi16(to, mask, narrow);
      }
    }
  }
}

struct Tiling {
  int64_t m, n;
  std::span<const TileTerm> terms;  // k a multiple of 32
  const TileOutput* out;
  std::span<const PanelTerm> last;  // the rows after the last whole panel, padded
};

// A finished block on its way to C. Each is written while the next one multiplies.
class BlockWriter {
 public:
  explicit BlockWriter(const TileOutput& out, int64_t n) : out_(out), n_(n) {
    plain_ = !out.accumulate && !out.addend && !out.bias;
  }

  AMX_TARGET void flush() {
    if (rows_ == 0) return;
    const int64_t cols = std::min(kTileN, n_ - col_);
    const float* block = blocks_ + current_ * kPanelRows * kTileN;
    if (plain_ && rows_ == kPanelRows && cols == kTileN && out_.dtype == BALORA_BF16) {
      write_whole(block, static_cast<bf16*>(out_.c) + row_ * out_.ldc + col_, out_.ldc);
    } else {
      write_block(block, out_, row_, col_, rows_, cols);
    }
    rows_ = 0;
  }

  // Takes the tiles as the block at (row, col). The one before must be flushed.
  AMX_TARGET void take(int64_t row, int64_t col, int64_t rows) {
    if (plain_ && rows == kPanelRows && n_ - col >= kTileN && out_.dtype == BALORA_F32) {
      return store_tiles(static_cast<float*>(out_.c) + row * out_.ldc + col, out_.ldc);
    }
    current_ ^= 1;
    store_tiles(blocks_ + current_ * kPanelRows * kTileN, kTileN);
    row_ = row, col_ = col, rows_ = rows;
  }

 private:
  const TileOutput& out_;
  int64_t n_, row_ = 0, col_ = 0, rows_ = 0;
  bool plain_;
  int current_ = 0;
  alignas(64) float blocks_[2 * kPanelRows * kTileN];
};

AMX_TARGET void multiply_range(const Tiling& t, int64_t row_begin, int64_t row_end,
                               int64_t panel_begin, int64_t panel_end) {
  const TileConfig config;
  _tile_loadconfig(&config);
  BlockWriter writer(*t.out, t.n);
  std::vector<PanelTerm> panel;
  int64_t bytes = 0;
  for (const TileTerm& term : t.terms) bytes += term.k * kTileN * int64_t{sizeof(bf16)};
  const int64_t cached = std::max<int64_t>(kCachedBytes / std::max<int64_t>(bytes, 1), 1);
  for (int64_t first = panel_begin; first < panel_end; first += cached) {
    const int64_t last = std::min(first + cached, panel_end);
    for (int64_t row = row_begin * kPanelRows; row < std::min(row_end * kPanelRows, t.m);
         row += kPanelRows) {
      const int64_t rows = std::min(kPanelRows, t.m - row);
      if (rows < kPanelRows) {
        panel.assign(t.last.begin(), t.last.end());
      } else {
        panel.clear();
        for (const TileTerm& x : t.terms) {
          panel.push_back({x.a + row * x.lda, x.lda, x.k / kTileK, x.tiles});
        }
      }
      for (int64_t p = first; p < last; ++p) {
        multiply_block(panel, p);
        writer.flush();
        writer.take(row, p * kTileN, rows);
      }
    }
  }
  writer.flush();
  _tile_release();
}

// x (rows,k) into `to` (padded_rows, padded_k), zeros around.
void copy_padded(const bf16* x, int64_t lda, int64_t rows, int64_t k, bf16* to, int64_t padded_rows,
                 int64_t padded_k) {
  for (int64_t i = 0; i < padded_rows; ++i) {
    bf16* row = to + i * padded_k;
    const int64_t width = i < rows ? k : 0;
    if (width) std::memcpy(row, x + i * lda, static_cast<size_t>(width) * sizeof(bf16));
    std::memset(row + width, 0, static_cast<size_t>(padded_k - width) * sizeof(bf16));
  }
}

// How evenly `items` share out among threads.
double evenness(int64_t items, int64_t threads) {
  return static_cast<double>(items) / static_cast<double>(round_up(items, threads));
}

}  // namespace

bool amx_ready() {
  static const bool granted = [] {
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return cpu_has_amx() && granted;
}

void multiply_tiles(Context* ctx, int64_t m, int64_t n, std::span<const TileTerm> terms,
                    const TileOutput& out) {
  if (m == 0 || n == 0) return;
  CpuState& state = CpuState::of(ctx);
  const int64_t tail = m % kPanelRows;
  int64_t elements = 0;
  for (const TileTerm& term : terms) {
    const int64_t padded = round_up(term.k, kTileK);
    elements += kPanelRows * padded + (padded != term.k ? m * padded : 0);
  }
  auto* scratch =
      static_cast<bf16*>(state.scratch(CpuState::kTilePadding, elements * sizeof(bf16)));
  std::vector<TileTerm> whole(terms.begin(), terms.end());
  std::vector<PanelTerm> last;
  for (TileTerm& term : whole) {
    const int64_t padded = round_up(term.k, kTileK);
    if (padded != term.k) {  // a tile may not read past its row
      copy_padded(term.a, term.lda, m, term.k, scratch, m, padded);
      term.a = scratch, term.lda = padded, term.k = padded;
      scratch += m * padded;
    }
    if (!tail) continue;
    copy_padded(term.a + (m - tail) * term.lda, term.lda, tail, term.k, scratch, kPanelRows,
                padded);
    last.push_back({scratch, padded, padded / kTileK, term.tiles});
    scratch += kPanelRows * padded;
  }
  const Tiling tiling = {m, n, whole, &out, last};
  const int64_t row_panels = round_up(m, kPanelRows) / kPanelRows;
  const int64_t panels = round_up(n, kTileN) / kTileN;
  if (evenness(row_panels, ctx->num_threads) + 0.02 >= evenness(panels, ctx->num_threads)) {
    parallel_for(ctx, row_panels, 1, [&](int64_t begin, int64_t end) {
      multiply_range(tiling, begin, end, 0, panels);
    });
  } else {
    parallel_for(ctx, panels, 1, [&](int64_t begin, int64_t end) {
      multiply_range(tiling, 0, row_panels, begin, end);
    });
  }
}

#else

bool amx_ready() {
  return false;
}
void multiply_tiles(Context*, int64_t, int64_t, std::span<const TileTerm>, const TileOutput&) {
  throw UnsupportedError("this build has no AMX kernels");
}

#endif

}  // namespace balora
