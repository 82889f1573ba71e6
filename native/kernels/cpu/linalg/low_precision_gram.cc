#include "kernels/cpu/linalg/low_precision_gram.h"

#include <algorithm>

#include "kernels/cpu/linalg/gram_operands.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"

namespace balora {
namespace {

// The 16 x (16 words of k) block of A^T at row `row`, word `word`: lines of words of k (tall) or of
// rows. Where W ends, zeros.
template <typename T, typename S>
void read_block(const WeightSource& w, int64_t row, int64_t word, uint32_t* words) {
  constexpr int64_t kDepth = 16 * kPerWord<T>;
  const S* data = static_cast<const S*>(w.data);
  const int64_t k = word * kPerWord<T>;
  const int64_t w_row = w.tall() ? k : row, w_col = w.tall() ? row : k;
  const int64_t height = w.tall() ? kDepth : 16, width = w.tall() ? 16 : kDepth;
  const int64_t rows = std::clamp<int64_t>(w.rows - w_row, 0, height);
  const int64_t cols = std::clamp<int64_t>(w.cols - w_col, 0, width);
  if (rows == height && cols == width) {
    return at_level<&read_words<T, S>>(data + w_row * w.cols + w_col, w.cols, w.tall(), words);
  }
  S edge[32 * 32] = {};
  for (int64_t i = 0; i < rows; ++i) {
    std::copy_n(data + (w_row + i) * w.cols + w_col, cols, edge + i * width);
  }
  at_level<&read_words<T, S>>(edge, width, w.tall(), words);
}

// 16 x 16 rounded values, or what rounding takes off them.
template <typename T>
BALORA_INLINE void round_lines(const float* from, int64_t from_ld, bool rest, T* to,
                               int64_t to_ld) {
  for (int64_t i = 0; i < 16; ++i, from += from_ld, to += to_ld) {
    if (rest) {
#pragma omp simd
      for (int64_t j = 0; j < 16; ++j) to[j] = store<T>(from[j] - load(store<T>(from[j])));
    } else {
#pragma omp simd
      for (int64_t j = 0; j < 16; ++j) to[j] = store<T>(from[j]);
    }
  }
}

// x (rows,cols) in pairs of rows rounded to bf16, and what rounding left of it.
BALORA_INLINE void pack_pairs(const float* x, int64_t rows, int64_t cols, uint32_t* to,
                              uint32_t* rest) {
  for (int64_t i = 0; i < rows; i += 2) {
    const float *even = x + i * cols, *odd = even + cols;
    const int64_t at = i / 2 * cols;
#pragma omp simd
    for (int64_t j = 0; j < cols; ++j) to[at + j] = pair_of(even[j], odd[j]);
    if (!rest) continue;
#pragma omp simd
    for (int64_t j = 0; j < cols; ++j) {
      rest[at + j] = pair_of(even[j] - load(to_bf16(even[j])), odd[j] - load(to_bf16(odd[j])));
    }
  }
}

// Both triangles (n,n), rows to_ld apart, from the lower one of `sums`.
template <typename T>
void round_symmetric(const Context* ctx, const float* sums, int64_t n, bool rest, T* to,
                     int64_t to_ld) {
  parallel_for(ctx, n / 16, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * 16; i < end * 16; i += 16) {
      for (int64_t j = 0; j <= i; j += 16) {
        alignas(64) float mirrored[16 * 16];
        const float* block = sums + i * n + j;
        at_level<&round_lines<T>>(block, n, rest, to + i * to_ld + j, to_ld);
        if (i == j) continue;
        transpose16(reinterpret_cast<const uint32_t*>(block), n,
                    reinterpret_cast<uint32_t*>(mirrored), 16);
        at_level<&round_lines<T>>(mirrored, 16, rest, to + j * to_ld + i, to_ld);
      }
    }
  });
}

}  // namespace

LowPrecisionGram::LowPrecisionGram(const WeightSource& w, int64_t block_cols, Arena& arena)
    : w_(w), narrow_(tile_gemm_has_bf16()) {
  const int64_t m = w.padded_m(), n = w.padded_n(), bytes = narrow_ ? 2 : 4;
  gram_ld_ = n + 64 / bytes;
  left_ = arena.take<uint32_t>(n * (m * bytes / 4 + 16));
  right_ = arena.take<uint32_t>(n * m * bytes / 4);
  sums_ = arena.take<float>(n * n);
  gram_ = arena.take<char>(n * gram_ld_ * bytes);
  if (narrow_) rest_ = arena.take<char>(n * gram_ld_ * bytes);
  packed_x_ = arena.take<char>(2 * n * block_cols * bytes);
}

void LowPrecisionGram::make(const Context* ctx) {
  narrow_ ? make_in<bf16>(ctx) : make_in<float>(ctx);
}

template <typename T>
void LowPrecisionGram::make_in(const Context* ctx) {
  const int64_t m = w_.padded_m(), n = w_.padded_n();
  const GramOperands<T> a{n, GramOperands<T>::right_words(m), GramOperands<T>::left_words(m), left_,
                          right_};
  parallel_for(ctx, n / 16, 4, [&](int64_t begin, int64_t end) {
    for (int64_t word = 0; word < a.words; word += 16) {
      for (int64_t column = begin * 16; column < end * 16; column += 16) {
        alignas(64) uint32_t lines[16 * 16];
        dispatch_float(w_.dtype, [&]<typename S>() {
          if constexpr (!std::is_same_v<S, double>) read_block<T, S>(w_, column, word, lines);
        });
        a.place(lines, w_.tall(), column, word);
      }
    }
  });
  parallel_for(ctx, (n + kGramPanel - 1) / kGramPanel, 1, [&](int64_t begin, int64_t end) {
    const TileScope tiles;
    for (int64_t panel = begin * kGramPanel; panel < std::min(n, end * kGramPanel);
         panel += kGramPanel) {
      a.multiply(panel, n - panel, panel, 0, m, sums_ + panel * n + panel, n);
    }
  });
  auto* gram = static_cast<T*>(gram_);
  round_symmetric(ctx, sums_, n, false, gram, gram_ld_);
  refined_ = false;
}

bool LowPrecisionGram::refine(const Context* ctx) {
  if (!narrow_ || refined_) return false;
  round_symmetric(ctx, sums_, w_.padded_n(), true, static_cast<bf16*>(rest_), gram_ld_);
  refined_ = true;
  return true;
}

void LowPrecisionGram::apply(const Context* ctx, const FloatBlock& x, const FloatBlock& y,
                             bool fine) const {
  narrow_ ? apply_in<bf16>(ctx, x, y, fine) : apply_in<float>(ctx, x, y, fine);
}

template <typename T>
void LowPrecisionGram::apply_in(const Context* ctx, const FloatBlock& x, const FloatBlock& y,
                                bool fine) const {
  const T *right = nullptr, *right_rest = nullptr;
  if constexpr (std::is_same_v<T, bf16>) {
    auto* packed = static_cast<uint32_t*>(packed_x_);
    at_level<&pack_pairs>(x.values, x.rows, x.cols, packed, fine ? packed + x.size() / 2 : nullptr);
    right = static_cast<const bf16*>(packed_x_);
    if (fine) right_rest = right + x.size();
  } else {
    right = x.values;
  }
  parallel_for(ctx, x.rows / 32, 16, [&](int64_t begin, int64_t end) {
    const TileScope tiles;
    const int64_t row = begin * 32;
    const auto add = [&](const void* gram, const T* operand, bool accumulate) {
      tile_gemm({(end - begin) * 32, x.cols, x.rows}, static_cast<const T*>(gram) + row * gram_ld_,
                gram_ld_, operand, y.values + row * y.cols, y.cols, accumulate);
    };
    add(gram_, right, false);
    if (refined_) add(rest_, right, true);
    if (right_rest) add(gram_, right_rest, true);
  });
}

}  // namespace balora
