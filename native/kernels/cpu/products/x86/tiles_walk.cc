// A thread's part of run_tiles. A block of C is 32 x 32 f32 that stays in registers over the whole
// of k and over every term: 2 x 2 tiles of AMX, or parts of 8 or 12 rows one after the other of
// AVX512-BF16. A panel of 32 rows of A stays in L1 while B's panels stream from L2 or L3; where B
// is larger than Core::kCachedBytes, the rows are walked once for each part of B, and threads that
// are done take over rows of others in the last one. With AMX a block is rounded and written while
// the next one multiplies; AVX512-BF16 rounds in its registers, computes no rows that are not
// there, and asks for the next panel of A and the rows of C ahead of time.
#include <algorithm>

#include "kernels/cpu/products/transpose16.h"
#include "kernels/cpu/products/x86/tiles_cores.h"
#include "kernels/cpu/runtime/x86/lanes.h"

namespace balora::x86 {
namespace {

using namespace tiles;

// Writes rows x cols of a block to C, at (row, col), with its bias.
BF16_TARGET void write_block(const float* block, const TileOutput& out, int64_t row, int64_t col,
                             int64_t rows, int64_t cols) {
  for (int64_t half = 0; half < cols; half += 16) {
    const auto mask = static_cast<__mmask16>((1u << std::min<int64_t>(cols - half, 16)) - 1);
    const int64_t j = col + half;
    const __m512 bias = out.bias ? _mm512_maskz_loadu_ps(mask, out.bias + j) : _mm512_setzero_ps();
    for (int64_t r = 0; r < rows; ++r) {
      __m512 value = _mm512_load_ps(block + r * kTileN + half);
      if (out.bias) value = _mm512_add_ps(value, bias);
      const int64_t at = out.offset(row + r, col) + half;
      if (out.dtype == BALORA_F32) {
        _mm512_mask_storeu_ps(static_cast<float*>(out.c) + at, mask, value);
      } else {
        lanes::store_bf16(static_cast<bf16*>(out.c) + at, mask, value);
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
    if (f.u && r < rows) _mm512_mask_storeu_ps(f.u + (row + r) * f.rank + first, mask, u);
    if (!f.columns) continue;
    bf16* to = f.columns + (row + r) * f.ld + first;
    lanes::store_bf16(to, mask, u);
    if (f.form == FactorForm::kChange) {
      lanes::store_bf16(to + f.rank, mask, _mm512_mul_ps(scale, right));
    } else if (f.form == FactorForm::kHalves) {
      lanes::store_bf16(to + f.rank, mask, lanes::rounding_left(u));
      lanes::store_bf16(to + 2 * f.rank, mask, u);
    }
  }
}

// Floats between the rows of the sums of terms in int8.
constexpr int64_t kBeginningLd = 64;

// The terms in int8 of the panels of an item: at `block`, kBeginningLd a row. The rows of C that
// they become are asked for, since the stores would wait for them.
BF16_TARGET void multiply_int8(const Sum& sum, int64_t row, int64_t rows, int64_t panel,
                               Int8Multiply multiply, float* block) {
  const int64_t width = sum.panels_at_once();
  const int64_t element = sum.out.dtype == BALORA_F32 ? sizeof(float) : sizeof(bf16);
  const char* const c = static_cast<const char*>(sum.out.c);
  for (int64_t i = 0; i < width; ++i) {
    const int64_t column = (panel + i) * kInt8Columns;
    for (int64_t r = 0; r < rows; ++r) {
      __builtin_prefetch(c + sum.out.offset(row + r, column) * element, 0, 2);
    }
    for (const Int8Source& term : sum.int8) {
      const int64_t panel_bytes = term.b.steps() * kInt8StepBytes;
      multiply({.a = term.a.q + row * term.a.ld,
                .lda = term.a.ld,
                .b = term.tiles + (panel + i - term.first_panel) * panel_bytes,
                .steps = term.b.steps(),
                .offset = term.b.offset + column,
                .row_scale = term.a.scale + row,
                .scale = term.b.scale ? term.b.scale + column : nullptr},
               rows, block + i * kInt8Columns, kBeginningLd, &term != &sum.int8[0]);
    }
  }
  const int64_t rotation = sum.int8[0].b.rotation;
  if (rotation == 0) return;
  if (rotation == kBeginningLd) return rotate_blocks(block, rows * kBeginningLd, rotation);
  for (int64_t r = 0; r < rows; ++r) rotate_blocks(block + r * kBeginningLd, rotation, rotation);
}

template <typename Core>
AMX_TARGET void project_panel(const Projection& projection, int64_t row, int64_t rows,
                              PendingRows& pending) {
  alignas(64) float block[kPanelRows * kTileN];
  Source x = projection.x;
  for (const TileFactor& factor : projection.factors) {
    x.tiles = factor.tiles;
    for (int64_t first = 0; first < factor.rank; first += kRankTile) {
      const int64_t panel = first / kRankTile;
      Core::multiply({&x, 1}, row, rows, panel, pending, {.data = block, .ld = kTileN});
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
      return {.data = static_cast<float*>(out.c) + out.offset(row, col), .ld = out.ldc};
    }
    if (is_whole(sum, col, rows) && rounds_) {
      return {.rounded = static_cast<bf16*>(out.c) + out.offset(row, col), .ld = out.ldc};
    }
    return {.data = const_cast<float*>(blocks_) + (current_ ^ 1) * kPanelRows * kTileN,
            .ld = kTileN};
  }

  // Sums that the block at (row, col) begins with: C itself, or the part of it that is there, in
  // `block`, kTileN a row.
  BF16_TARGET static Beginning beginning(const Sum& sum, int64_t row, int64_t col, int64_t rows,
                                         float* block) {
    if (!sum.out.accumulate) return {};
    const int64_t ldc = sum.out.ldc;
    const float* const c = static_cast<const float*>(sum.out.c) + sum.out.offset(row, col);
    if (is_whole(sum, col, rows)) return {c, ldc};
    for (int64_t r = 0; r < kPanelRows; ++r) {
      for (int64_t half = 0; half < kTileN; half += 16) {
        const __mmask16 there = r < rows ? lanes::first16(sum.n - col - half) : __mmask16{0};
        _mm512_store_ps(block + r * kTileN + half,
                        _mm512_maskz_loadu_ps(there, c + r * ldc + half));
      }
    }
    return {block, kTileN};
  }

  // Records that the block of place() is finished. The one before must be flushed.
  void take(const Sum& sum, int64_t row, int64_t col, int64_t rows) {
    const TileOutput& out = sum.out;
    const bool whole = is_whole(sum, col, rows);
    if (whole && (rounds_ || out.dtype == BALORA_F32)) return;
    current_ ^= 1;
    if (whole) {
      pending_ = {blocks_ + current_ * kPanelRows * kTileN,
                  static_cast<bf16*>(out.c) + out.offset(row, col), out.ldc, 0, kPanelRows};
    } else {
      sum_ = &sum, row_ = row, col_ = col, rows_ = rows;
    }
  }

 private:
  static bool is_whole(const Sum& sum, int64_t col, int64_t rows) {
    return !sum.out.bias && rows == kPanelRows && sum.n - col >= kTileN;
  }

  bool rounds_;
  const Sum* sum_ = nullptr;
  int64_t row_ = 0, col_ = 0, rows_ = 0;
  int current_ = 0;
  PendingRows pending_;
  alignas(64) float blocks_[2 * kPanelRows * kTileN];
};

// Transposes 16 x 16 floats.
void transpose_floats_16(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  transpose16(reinterpret_cast<const uint32_t*>(from), from_stride, reinterpret_cast<uint32_t*>(to),
              to_stride);
}

// Rows up to which they are taken out of a transposed block one by one.
constexpr int64_t kGatheredRows = 3;

// A block of few rows whose last term is multiplied as it lies, and whose other terms are `before`:
// at c, 32 columns in a row.
AMX_TARGET void multiply_in_place(AmxCore, const Sum& sum, std::span<const Source> before,
                                  int64_t row, int64_t rows, int64_t panel, float* c) {
  alignas(64) float transposed[kTileN * kInPlaceRows];
  PendingRows none;
  if (!before.empty()) {
    AmxCore::multiply(before, row, rows, panel, none, {.data = c, .ld = kTileN});
    transpose_floats_16(c, kTileN, transposed, kInPlaceRows);
    transpose_floats_16(c + 16, kTileN, transposed + 16 * kInPlaceRows, kInPlaceRows);
  }
  const TileMatrix& matrix = sum.unpacked[0].matrix;
  AmxCore::multiply_columns(matrix.at(0, panel * kTileN).data, matrix.n_stride, sum.rows,
                            sum.terms.back().steps, transposed, !before.empty());
  if (rows <= kGatheredRows) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = 0; j < kTileN; ++j) c[r * kTileN + j] = transposed[j * kInPlaceRows + r];
    }
    return;
  }
  transpose_floats_16(transposed, kInPlaceRows, c, kTileN);
  transpose_floats_16(transposed + 16 * kInPlaceRows, kInPlaceRows, c + 16, kTileN);
}

BF16_TARGET void multiply_in_place(Avx512Core, const Sum& sum, std::span<const Source> before,
                                   int64_t row, int64_t rows, int64_t panel, float* c) {
  PendingRows none;
  if (!before.empty()) {
    Avx512Core::multiply(before, row, rows, panel, none, {.data = c, .ld = kTileN});
  }
  const TileMatrix& matrix = sum.unpacked[0].matrix;
  Avx512Core::multiply_columns(matrix.at(0, panel * kTileN).data, matrix.n_stride, sum.terms.back(),
                               rows, c, !before.empty());
}

// The share of the rows from `first` to `last`, the next panel, that item `part` of `parts` asks
// for. Most sums of a job read the same rows.
LinesAhead rows_ahead(const Sum& sum, int64_t first, int64_t last, size_t part, size_t parts) {
  if (sum.terms.empty()) return {};
  const auto begin = [&](size_t index) {
    return first + (last - first) * static_cast<int64_t>(index) / static_cast<int64_t>(parts);
  };
  const Source& widest =
      *std::max_element(sum.terms.begin(), sum.terms.end(),
                        [](const Source& x, const Source& y) { return x.pairs < y.pairs; });
  constexpr int64_t kBytes = static_cast<int64_t>(sizeof(bf16));
  return {widest.a + begin(part) * widest.lda, begin(part + 1) - begin(part),
          2 * widest.pairs * kBytes, widest.lda * kBytes};
}

// The parts of the terms of a sum that are multiplied in each pass over a chunk of B.
using Passes = std::vector<std::vector<Source>>;

// Panels of a chunk of B that have more steps than a pass.
template <typename Core>
constexpr int64_t kMostPartial = Core::kCachedBytes / (Core::kPassSteps * kStepElements * 2) + 1;

Passes passes_of(const Sum& sum, int64_t most_steps) {
  int64_t steps = 0;
  for (const Source& term : sum.terms) steps += term.steps;
  const int64_t count = std::max<int64_t>(1, (steps + most_steps - 1) / most_steps);
  Passes passes(static_cast<size_t>(count));
  for (int64_t pass = 0; pass < count; ++pass) {
    const int64_t first = steps * pass / count, last = steps * (pass + 1) / count;
    int64_t at = 0;  // where the term begins
    for (const Source& term : sum.terms) {
      const int64_t low = std::max(first, at) - at, high = std::min(last, at + term.steps) - at;
      if (low < high) passes[static_cast<size_t>(pass)].push_back(term.part(low, high - low));
      at += term.steps;
    }
  }
  return passes;
}

// Whether many panels of a sum fit beside each other in what a core keeps of B.
template <typename Core>
constexpr bool many_fit(int64_t item_bytes) {
  return item_bytes * kManyPanels <= Core::kCachedBytes;
}

// A core that is closed where the work between throws, as well.
template <typename Core>
class Opened {
 public:
  Opened() { Core::open(); }
  ~Opened() { Core::close(); }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;
};

// A thread's part of a job, multiplied.
template <typename Core>
class Walk {
 public:
  // `packed`: the job's sums, where the part packs some of their B.
  Walk(const Job& job, const Part& part, std::vector<Sum>* packed)
      : job_(job),
        part_(part),
        packed_(packed),
        sums_(packed ? *packed : job.sums),
        writer_(Core::kRounds),
        passes_(job.sums.size()) {}

  AMX_TARGET void run() {
    const Opened<Core> opened;
    bool project = true;
    size_t first = part_.item_begin;
    do {
      const Chunk chunk = chunk_from(first);
      if (packed_ && !in_place(job_, job_.items[first])) {
        pack_items(job_, first, chunk.last, *packed_, part_.own);
      }
      const size_t most_passes = plan_passes(chunk);
      const auto walk = [&](int64_t begin, int64_t end) AMX_TARGET {
        for (int64_t panel = begin; panel < end; ++panel) {
          walk_panel(chunk, rows_of(panel), most_passes, project);
        }
      };
      Balance* const balance = part_.balance;
      if (balance && chunk.last == part_.item_end) {
        balance->shares.take_own(part_.thread, walk);
        // In the first chunk whoever takes a panel projects it; later, others' panels may be read
        // only after all threads have projected theirs.
        if (project || job_.projections.empty() || balance->all_projected()) {
          balance->shares.take_others(part_.thread, walk);
        }
      } else {
        walk(part_.row_begin, part_.row_end);
        if (balance && project) balance->projected.fetch_add(1, std::memory_order_release);
      }
      project = false;
      first = chunk.last;
    } while (first < part_.item_end);
    writer_.flush();
  }

 private:
  // Items [first, last), whose B a core keeps over all rows.
  struct Chunk {
    size_t first, last;
    Meeting meeting;
    size_t count() const { return last - first; }
  };
  // A panel of rows, and where the next one ends.
  struct Rows {
    int64_t first, count, next_end;
    int64_t next() const { return first + count; }
  };

  AMX_TARGET void walk_panel(const Chunk& chunk, const Rows& rows, size_t passes, bool project) {
    if (project) {
      for (const Projection& p : job_.projections) {
        project_panel<Core>(p, rows.first, rows.count, writer_.pending());
      }
    }
    for (size_t pass = 0; pass < passes; ++pass) multiply_pass(chunk, rows, pass);
  }

  // One panel of rows uses what it packs once: a panel of B is multiplied while the next one, which
  // packing has asked for, is on its way from memory.
  Chunk chunk_from(size_t first) const {
    const bool reuses = part_.row_end - part_.row_begin > 1;
    const bool small = first < part_.item_end && many_fit<Core>(job_.items[first].bytes);
    const int64_t most = !reuses ? 0
                         : small ? std::min(Core::kCachedBytes, tiles_core().cached_bytes)
                                 : tiles_core().cached_bytes;
    size_t last = first;
    for (int64_t bytes = 0; last < part_.item_end; ++last) {
      bytes += job_.items[last].bytes;
      if (bytes > most && last > first) break;
    }
    const bool many = small && std::cmp_greater_equal(last - first, kManyPanels);
    return {first, last, many ? Meeting::kMany : Meeting::kFew};
  }

  Rows rows_of(int64_t panel) const {
    const int64_t first = panel * kPanelRows, count = std::min(kPanelRows, job_.m - first);
    const int64_t next = first + count;
    return {first, count, panel + 1 < part_.row_end ? std::min(next + kPanelRows, job_.m) : next};
  }

  // The passes of the sums that a chunk has items of; returns the most of one.
  size_t plan_passes(const Chunk& chunk) {
    size_t most = 1;
    for (size_t i = chunk.first; i < chunk.last; ++i) {
      const size_t at = job_.items[i].sum;
      if (i > chunk.first && at == job_.items[i - 1].sum) continue;
      const bool divides = chunk.meeting == Meeting::kMany && sums_[at].int8.empty();
      passes_[at] = passes_of(sums_[at], divides ? Core::kPassSteps : kAnySteps);
      most = std::max(most, passes_[at].size());
    }
    return most;
  }

  AMX_TARGET void multiply_pass(const Chunk& chunk, const Rows& rows, size_t pass) {
    size_t slot = 0;
    for (size_t i = chunk.first; i < chunk.last; ++i) {
      const Item& item = job_.items[i];
      const size_t count = passes_[item.sum].size();
      float* const kept = count > 1 ? partial_[slot++] : nullptr;
      if (pass >= count) continue;
      if (!sums_[item.sum].int8.empty()) {
        multiply_int8_item(item, rows);
      } else if (in_place(job_, item)) {
        multiply_item_in_place(item, rows);
      } else {
        multiply_item(chunk, i, rows, pass, kept);
      }
    }
  }

  // Panels that a rotation mixes are computed together.
  AMX_TARGET void multiply_int8_item(const Item& item, const Rows& rows) {
    const Sum& sum = sums_[item.sum];
    multiply_int8(sum, rows.first, rows.count, item.panel, int8_core().run, beginning_);
    for (int64_t p = 0; p < sum.panels_at_once(); ++p) {
      const int64_t col = (item.panel + p) * kTileN;
      Core::multiply(sum.terms, rows.first, rows.count, item.panel + p, writer_.pending(),
                     writer_.place(sum, rows.first, col, rows.count),
                     {beginning_ + p * kTileN, kBeginningLd});
      finish(sum, rows, col);
    }
  }

  AMX_TARGET void multiply_item_in_place(const Item& item, const Rows& rows) {
    const Sum& sum = sums_[item.sum];
    const int64_t col = item.panel * kTileN;
    const std::span<const Source> before(sum.terms.data(), sum.terms.size() - 1);
    float* const to = writer_.place(sum, rows.first, col, rows.count).data;
    multiply_in_place(Core(), sum, before, rows.first, rows.count, item.panel, to);
    finish(sum, rows, col);
  }

  // One pass of an item: its sums are `kept` until the last one.
  AMX_TARGET void multiply_item(const Chunk& chunk, size_t index, const Rows& rows, size_t pass,
                                float* kept) {
    const Item& item = job_.items[index];
    const Sum& sum = sums_[item.sum];
    const int64_t col = item.panel * kTileN;
    const size_t count = passes_[item.sum].size();
    const bool is_last = pass + 1 == count;
    const Beginning begins =
        pass > 0 ? Beginning{kept, kTileN}
                 : BlockWriter::beginning(sum, rows.first, col, rows.count, beginning_);
    const bool asks = chunk.meeting == Meeting::kMany || Core::kRounds;
    Core::multiply(
        passes_[item.sum][pass], rows.first, rows.count, item.panel, writer_.pending(),
        is_last ? writer_.place(sum, rows.first, col, rows.count)
                : BlockPlace{.data = kept, .ld = kTileN},
        begins, chunk.meeting,
        asks ? rows_ahead(sum, rows.next(), rows.next_end,
                          pass * chunk.count() + index - chunk.first, count * chunk.count())
             : LinesAhead());
    if (is_last) {
      finish(sum, rows, col);
    } else {
      writer_.flush();
    }
  }

  AMX_TARGET void finish(const Sum& sum, const Rows& rows, int64_t col) {
    writer_.flush();
    writer_.take(sum, rows.first, col, rows.count);
  }

  const Job& job_;
  const Part& part_;
  std::vector<Sum>* packed_;
  const std::vector<Sum>& sums_;
  BlockWriter writer_;
  std::vector<Passes> passes_;  // of each sum
  alignas(64) float beginning_[kPanelRows * kBeginningLd];
  alignas(64) float partial_[kMostPartial<Core>][kPanelRows * kTileN];
};

template <typename Core>
void run_part(const Job& job, const Part& part) {
  if (part.row_begin == part.row_end) return;
  if (part.item_begin == part.item_end && job.projections.empty()) return;
  std::vector<Sum> packed;  // with the panels that this thread has packed
  if (part.own) packed = job.sums;
  Walk<Core>(job, part, part.own ? &packed : nullptr).run();
}

}  // namespace

void run_part_amx(const Job& job, const Part& part) {
  run_part<AmxCore>(job, part);
}
void run_part_avx512(const Job& job, const Part& part) {
  run_part<Avx512Core>(job, part);
}

}  // namespace balora::x86
