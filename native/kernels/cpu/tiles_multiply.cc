// run_tiles (tiles.h). A block of C is 32 x 32 f32 that stays in registers over the whole of k and
// over every term: 2 x 2 tiles of AMX, or 12, 12 and 8 rows one after the other of AVX512-BF16. A
// panel of 32 rows of A stays in L1 while B's panels stream from L2 or L3; where B is larger than
// Core::kCachedBytes, the rows are walked once for each part of B. With AMX a block is rounded and
// written while the next one multiplies; AVX512-BF16 rounds in its registers and computes no rows
// that are not there. (Tried without a gain: prefetching A's next rows, C's lines.)
#include <algorithm>
#include <cstring>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/onednn.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/tiles.h"
#include "kernels/cpu/tiles_cores.h"
#include "kernels/cpu/tiles_target.h"
#include "tensor/errors.h"

#ifdef BALORA_TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace balora {

#ifdef BALORA_TILES
namespace {

using namespace tiles;

struct Projection {
  Source x;
  std::span<const TileFactor> factors;
};

struct Sum {
  int64_t n;
  std::vector<Source> terms;
  TileOutput out;
  bool plain;  // nothing is added to the sum
};

// One panel of columns of one sum.
struct Item {
  const Sum* sum;
  int64_t panel;
  int64_t bytes;
};

struct Job {
  int64_t m;
  std::vector<Projection> projections;
  std::vector<Sum> sums;
  std::vector<Item> items;
};

BF16_TARGET __m512 load_narrow(const void* from, __mmask16 mask) {
  const __m256i bits = _mm256_maskz_loadu_epi16(mask, from);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

BF16_TARGET __m256i narrow(__m512 values) {
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values));
}

// Writes rows x cols of a block to C, at (row, col), with whatever is added on the way.
BF16_TARGET void write_block(const float* block, const TileOutput& out, int64_t row, int64_t col,
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
        _mm256_mask_storeu_epi16(to, mask, narrow(value));
      }
    }
  }
}

// Ranks first .. first + 15 of a factor, from a block of their first and second columns.
BF16_TARGET void write_factor(const float* block, const TileFactor& f, int64_t row, int64_t rows,
                              int64_t first) {
  const auto mask = static_cast<__mmask16>((1u << std::min(f.rank - first, kRankTile)) - 1);
  const __m512 scale = _mm512_set1_ps(f.scale);
  for (int64_t r = 0; r < kPanelRows; ++r) {
    const auto valid = static_cast<__mmask16>(r < rows ? 0xffff : 0);  // past m: zeros
    const __m512 left = _mm512_maskz_load_ps(valid, block + r * kTileN);
    const __m512 right = _mm512_maskz_load_ps(valid, block + r * kTileN + 16);
    const __m512 u = _mm512_mul_ps(scale, _mm512_add_ps(left, right));
    if (r < rows) {
      const int64_t at = (row + r) * f.rank + first;
      if (f.u) _mm512_mask_storeu_ps(f.u + at, mask, u);
      if (f.u_start) _mm512_mask_storeu_ps(f.u_start + at, mask, _mm512_mul_ps(scale, left));
    }
    if (!f.columns) continue;
    bf16* to = f.columns + (row + r) * f.ld + first;
    const __m256i high = narrow(u);
    _mm256_mask_storeu_epi16(to, mask, high);
    if (f.form == FactorForm::kChange) {
      _mm256_mask_storeu_epi16(to + f.rank, mask, narrow(_mm512_mul_ps(scale, right)));
    } else {
      const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16);
      const __m256i low = narrow(_mm512_sub_ps(u, _mm512_castsi512_ps(wide)));
      _mm256_mask_storeu_epi16(to + f.rank, mask, low);
      _mm256_mask_storeu_epi16(to + 2 * f.rank, mask, high);
    }
  }
}

template <typename Core>
AMX_TARGET void project_panel(const Projection& projection, int64_t row, int64_t rows,
                              PendingRows& pending) {
  alignas(64) float block[kPanelRows * kTileN];
  int64_t panel = 0;
  for (const TileFactor& factor : projection.factors) {
    for (int64_t first = 0; first < factor.rank; first += kRankTile) {
      Core::multiply({&projection.x, 1}, row, rows, panel++, pending, {block, nullptr, kTileN});
      write_factor(block, factor, row, rows, first);
    }
  }
}

// The last finished block on its way to C.
class BlockWriter {
 public:
  // `rounds`: whether the core rounds whole blocks by itself.
  explicit BlockWriter(bool rounds) : rounds_(rounds) {}

  PendingRows& pending() { return pending_; }

  BF16_TARGET void flush() {
    pending_.write(kPanelRows);
    if (rows_ > 0) {
      const int64_t cols = std::min(kTileN, sum_->n - col_);
      write_block(blocks_ + current_ * kPanelRows * kTileN, sum_->out, row_, col_, rows_, cols);
    }
    rows_ = 0;
  }

  // Where the block at (row, col) of a sum is to be put.
  BlockPlace place(const Sum& sum, int64_t row, int64_t col, int64_t rows) const {
    const TileOutput& out = sum.out;
    if (is_whole(sum, col, rows) && out.dtype == BALORA_F32) {
      return {static_cast<float*>(out.c) + row * out.ldc + col, nullptr, out.ldc};
    }
    if (is_whole(sum, col, rows) && rounds_) {
      return {nullptr, static_cast<bf16*>(out.c) + row * out.ldc + col, out.ldc};
    }
    return {const_cast<float*>(blocks_) + (current_ ^ 1) * kPanelRows * kTileN, nullptr, kTileN};
  }

  // Takes note that it is there. The one before must be flushed.
  void take(const Sum& sum, int64_t row, int64_t col, int64_t rows) {
    const TileOutput& out = sum.out;
    const bool whole = is_whole(sum, col, rows);
    if (whole && (rounds_ || out.dtype == BALORA_F32)) return;
    current_ ^= 1;
    if (whole) {
      pending_ = {blocks_ + current_ * kPanelRows * kTileN,
                  static_cast<bf16*>(out.c) + row * out.ldc + col, out.ldc, kPanelRows};
    } else {
      sum_ = &sum, row_ = row, col_ = col, rows_ = rows;
    }
  }

 private:
  static bool is_whole(const Sum& sum, int64_t col, int64_t rows) {
    return sum.plain && rows == kPanelRows && sum.n - col >= kTileN;
  }

  bool rounds_;
  const Sum* sum_ = nullptr;
  int64_t row_ = 0, col_ = 0, rows_ = 0;
  int current_ = 0;
  PendingRows pending_;
  alignas(64) float blocks_[2 * kPanelRows * kTileN];
};

// Row panels and items given as [begin, end).
template <typename Core>
AMX_TARGET void run_range(const Job& job, int64_t row_begin, int64_t row_end, size_t item_begin,
                          size_t item_end) {
  Core::open();
  BlockWriter writer(Core::kRounds);
  bool project = true;
  size_t first = item_begin;
  do {
    size_t last = first;
    for (int64_t bytes = 0; last < item_end; ++last) {
      bytes += job.items[last].bytes;
      if (bytes > Core::kCachedBytes && last > first) break;
    }
    for (int64_t panel = row_begin; panel < row_end; ++panel) {
      const int64_t row = panel * kPanelRows, rows = std::min(kPanelRows, job.m - row);
      if (project) {
        for (const Projection& p : job.projections)
          project_panel<Core>(p, row, rows, writer.pending());
      }
      for (size_t i = first; i < last; ++i) {
        const Item& item = job.items[i];
        const int64_t col = item.panel * kTileN;
        Core::multiply(item.sum->terms, row, rows, item.panel, writer.pending(),
                       writer.place(*item.sum, row, col, rows));
        writer.flush();
        writer.take(*item.sum, row, col, rows);
      }
    }
    project = false;
    first = last;
  } while (first < item_end);
  writer.flush();
  Core::close();
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

int64_t padding_elements(const TileTerm& term, int64_t m) {
  const int64_t padded = round_up(term.k, kTileK);
  return kPanelRows * padded + (padded != term.k ? m * padded : 0);
}

// A tile may read neither past its row nor past the last row, so ragged edges are copied to
// `scratch`.
Source make_source(const TileTerm& term, int64_t m, bf16*& scratch) {
  const int64_t padded = round_up(term.k, kTileK), whole = m / kPanelRows * kPanelRows;
  const int64_t used = term.used > 0 ? term.used : term.k;
  Source source = {term.a, term.lda, nullptr, padded, padded / kTileK, (used + 1) / 2, term.tiles};
  if (padded != term.k) {
    copy_padded(term.a, term.lda, m, term.k, scratch, m, padded);
    source.a = scratch, source.lda = padded;
    scratch += m * padded;
  }
  if (term.padded_rows) {
    source.tail = source.a + whole * source.lda, source.tail_ld = source.lda;
  } else if (whole < m) {
    copy_padded(source.a + whole * source.lda, source.lda, m - whole, padded, scratch, kPanelRows,
                padded);
    source.tail = scratch;
    scratch += kPanelRows * padded;
  }
  return source;
}

Job make_job(Context* ctx, int64_t m, std::span<const TileProjection> projections,
             std::span<const TileSum> sums) {
  int64_t elements = 0;
  for (const TileProjection& p : projections) elements += padding_elements(p.x, m);
  for (const TileSum& sum : sums) {
    for (const TileTerm& term : sum.terms) elements += padding_elements(term, m);
  }
  auto* scratch = static_cast<bf16*>(
      CpuState::of(ctx).scratch(CpuState::kTilePadding, elements * sizeof(bf16)));
  Job job{m, {}, {}, {}};
  for (const TileProjection& p : projections) {
    job.projections.push_back({make_source(p.x, m, scratch), p.factors});
  }
  for (const TileSum& sum : sums) {
    const bool plain = !sum.out.accumulate && !sum.out.addend && !sum.out.bias;
    Sum& made = job.sums.emplace_back(Sum{sum.n, {}, sum.out, plain});
    for (const TileTerm& term : sum.terms) made.terms.push_back(make_source(term, m, scratch));
  }
  for (const Sum& sum : job.sums) {
    int64_t bytes = 0;
    for (const Source& term : sum.terms) bytes += term.steps * kStepElements * int64_t{2};
    for (int64_t p = 0; p * kTileN < sum.n; ++p) job.items.push_back({&sum, p, bytes});
  }
  return job;
}

// How evenly `items` share out among threads.
double evenness(int64_t items, int64_t threads) {
  return static_cast<double>(items) / static_cast<double>(round_up(items, threads));
}

}  // namespace

bool tiles_use_amx() {
  static const bool granted = [] {
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
    return cpu_has_amx() && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return granted;
}

bool tiles_ready() {
  return tiles_use_amx() || cpu_multiplies_bf16();
}

void run_tiles(Context* ctx, int64_t m, std::span<const TileProjection> projections,
               std::span<const TileSum> sums) {
  if (m == 0) return;
  const Job job = make_job(ctx, m, projections, sums);
  const int64_t rows = round_up(m, kPanelRows) / kPanelRows;
  const auto items = static_cast<int64_t>(job.items.size());
  const int threads = ctx->num_threads;
  const auto run = tiles_use_amx() ? &run_range<AmxCore> : &run_range<Avx512Core>;
  if (!projections.empty() || evenness(rows, threads) + 0.02 >= evenness(items, threads)) {
    parallel_for(ctx, rows, 1,
                 [&](int64_t begin, int64_t end) { run(job, begin, end, 0, job.items.size()); });
  } else {
    parallel_for(ctx, items, 1, [&](int64_t begin, int64_t end) {
      run(job, 0, rows, static_cast<size_t>(begin), static_cast<size_t>(end));
    });
  }
}

#else

bool tiles_use_amx() {
  return false;
}
bool tiles_ready() {
  return false;
}
void run_tiles(Context*, int64_t, std::span<const TileProjection>, std::span<const TileSum>) {
  throw UnsupportedError("this build has no tile kernels");
}

#endif

}  // namespace balora
