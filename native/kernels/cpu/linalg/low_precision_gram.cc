#include "kernels/cpu/linalg/low_precision_gram.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/linalg/low_precision_gram_bf16.h"
#include "kernels/cpu/products/transpose16.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/levels.h"
#include "kernels/cpu/runtime/parallel.h"

namespace balora {
namespace {

constexpr int64_t kPanelCols = 64;

// tile_gemm's operands in 32-bit words: one f32, or two bf16 that follow each other in k.
template <typename T>
constexpr int64_t kPerWord = 4 / static_cast<int64_t>(sizeof(T));

// 16 lines of 16 words, from the rows of W.
template <typename S>
BALORA_INLINE void read_lines(const S* w, int64_t ld, uint32_t* words) {
  for (int64_t i = 0; i < 16; ++i) {
    for (int64_t j = 0; j < 16; ++j) {
      words[i * 16 + j] = std::bit_cast<uint32_t>(static_cast<float>(load(w[i * ld + j])));
    }
  }
}

// 16 lines of 16 words of T: values in f32, or pairs of bf16 (lanes::read_lines).
template <typename T, typename S>
void read_words(const S* w, int64_t ld, bool across, uint32_t* words) {
  if constexpr (std::is_same_v<T, bf16>) {
    lanes::read_lines(w, ld, across, words);
  } else {
    at_level<&read_lines<S>>(w, ld, words);
  }
}

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
    return read_words<T>(data + w_row * w.cols + w_col, w.cols, w.tall(), words);
  }
  S edge[32 * 32] = {};
  for (int64_t i = 0; i < rows; ++i) {
    std::copy_n(data + (w_row + i) * w.cols + w_col, cols, edge + i * width);
  }
  read_words<T>(static_cast<const S*>(edge), width, w.tall(), words);
}

void copy_lines(const uint32_t* from, uint32_t* to, int64_t stride) {
  for (int64_t i = 0; i < 16; ++i) std::memcpy(to + i * stride, from + i * 16, 64);
}

// Rounded values; or, of bf16, what that rounding takes off them.
void round_lines(const float* from, int64_t from_ld, bool rest, bf16* to, int64_t to_ld) {
  lanes::round_lines(from, from_ld, rest, to, to_ld);
}
void round_lines(const float* from, int64_t from_ld, bool, float* to, int64_t to_ld) {
  for (int64_t i = 0; i < 16; ++i) std::copy_n(from + i * from_ld, 16, to + i * to_ld);
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
        round_lines(block, n, rest, to + i * to_ld + j, to_ld);
        if (i == j) continue;
        transpose16(reinterpret_cast<const uint32_t*>(block), n,
                    reinterpret_cast<uint32_t*>(mirrored), 16);
        round_lines(mirrored, 16, rest, to + j * to_ld + i, to_ld);
      }
    }
  });
}

}  // namespace

LowPrecisionGram::LowPrecisionGram(const WeightSource& w, int64_t block_cols, Arena& arena)
    : w_(w), narrow_(tile_gemm_has_bf16()) {
  const int64_t m = w.padded_m(), n = w.padded_n(), bytes = narrow_ ? 2 : 4;
  left_ld_ = m + 64 / bytes, gram_ld_ = n + 64 / bytes;
  left_ = arena.take<char>(n * left_ld_ * bytes);
  panels_ = arena.take<char>(n * m * bytes);
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
  const int64_t words = m / kPerWord<T>, left_ld = left_ld_ / kPerWord<T>;
  auto* left = static_cast<uint32_t*>(left_);
  auto* panels = static_cast<uint32_t*>(panels_);
  parallel_for(ctx, n / 16, 4, [&](int64_t begin, int64_t end) {
    for (int64_t word = 0; word < words; word += 16) {
      for (int64_t row = begin * 16; row < end * 16; row += 16) {
        alignas(64) uint32_t lines[16 * 16];
        dispatch_float(w_.dtype, [&]<typename S>() {
          if constexpr (!std::is_same_v<S, double>) read_block<T, S>(w_, row, word, lines);
        });
        const int64_t panel = row / kPanelCols * kPanelCols;
        const int64_t width = std::min(kPanelCols, n - panel);
        uint32_t* right = panels + panel * words + word * width + row - panel;
        if (w_.tall()) {
          copy_lines(lines, right, width);
          transpose16(lines, 16, left + row * left_ld + word, left_ld);
        } else {
          copy_lines(lines, left + row * left_ld + word, left_ld);
          transpose16(lines, 16, right, width);
        }
      }
    }
  });
  auto* gram = static_cast<T*>(gram_);
  const int64_t panel_count = (n + kPanelCols - 1) / kPanelCols;
  parallel_for(ctx, panel_count, 1, [&](int64_t begin, int64_t end) {
    const TileScope tiles;
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t col = panel * kPanelCols, width = std::min(kPanelCols, n - col);
      tile_gemm({n - col, width, m}, static_cast<const T*>(left_) + col * left_ld_, left_ld_,
                static_cast<const T*>(panels_) + col * m, sums_ + col * n + col, n, false);
    }
  });
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
    lanes::pack_pairs(x.values, x.rows, x.cols, packed, fine ? packed + x.size() / 2 : nullptr);
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
