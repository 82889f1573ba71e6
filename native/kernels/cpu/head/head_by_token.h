// The head's losses where their logits lie by token: W is then the left operand of its products,
// which is read where it lies, and only the hidden states are packed; a group of tokens gets its
// exponentials while its logits are in L2, and what is kept of them takes half of their memory, so
// that as many rows as by row share what is read of W in half of the memory (token_passes.h); dz of
// a block of tokens is multiplied where it has just been formed. For bf16 in tiles of AMX, and
// losses whose exponentials are kept (head_rows.h): a quarter quicker there than by row, and not
// measured on processors with AVX512-BF16 alone, whose L2 holds less.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/head/head_rows.h"
#include "kernels/cpu/head/token_passes.h"
#include "kernels/cpu/products/gemm.h"
#include "kernels/cpu/products/tiles.h"
#include "kernels/operands/head.h"

namespace balora {

class HeadByToken {
 public:
  // The most rows of a compute() within the budget; 0 where a call is not computed so.
  static int64_t chunk_rows(const balora_head_losses& o);

  // `options` are the operands' with all scales multiplied; `chunk` is what chunk_rows() gave.
  HeadByToken(Context* ctx, const balora_head_losses& o, const HeadOptions& options, int64_t chunk);

  // The terms of rows from `first` on, BALORA_HEAD_TERMS each.
  void compute(int64_t first, std::span<const RowRole> roles, double* terms);

  // dh (rows,C) f32 dense = dz W of the last compute(); null: it is not wanted. Where dw is, dz takes
  // the place of what was kept, by blocks of tokens.
  void multiply_back(float* dh);
  int64_t block_tokens() const { return block_; }
  // The block of dz that begins with a token, transposed.
  GemmInput gradient_of_block(int64_t token) const {
    return {kept_of(token / block_), BALORA_BF16, dz_ld(), true};
  }

 private:
  struct Lanes {  // numbers by lane
    std::vector<float> z, y, scale, task, student, teacher;
    std::vector<uint16_t> compared, ranked, squares;
    explicit Lanes(int64_t count);
  };
  struct Target {
    int64_t token, row;
    float z = 0, y = 0;  // its logits
  };
  struct Element {  // of dz
    int64_t row, token;
    bf16 value;
  };
  // A thread's own.
  struct Own {
    float* logits;  // of a group
    float* bounds;  // (K,lanes) of rank_maxima()
    bf16* dz;       // (lanes,block)
    bf16* tiles;    // W of a block
    bf16* padding;  // of a group's rows of W
  };
  struct Range {
    int64_t begin, end;
  };

  int64_t operands() const { return o_.ht ? 2 : 1; }
  int64_t all_lanes() const { return lanes_ * operands(); }  // the teacher's behind
  int64_t blocks() const { return (vocabulary_ + block_ - 1) / block_; }
  int64_t groups() const { return blocks() * block_groups_; }
  int64_t dz_ld() const { return 2 * block_; }  // each row in the first half of its place
  int64_t tokens_of(int64_t block) const;
  int64_t tokens_of(int64_t block, int64_t group) const;
  uint32_t* kept_of(int64_t block) const { return kept_ + block * block_ * lanes_; }
  float* maxima_of(int64_t group) const { return maxima_ + group * all_lanes(); }
  head::LaneSums<double> totals() const;

  void begin_rows(std::span<const RowRole> roles);
  void pack(int64_t first);
  void compute_blocks(int64_t first);
  void compute_group(int64_t block, int64_t group, const Own& own,
                     std::vector<head::LaneCandidate>& found);
  void take_targets(const head::TokenGroup& group);
  void limit_candidates(std::vector<head::LaneCandidate>& found) const;
  void combine();
  void gather_candidates();
  void finish_rows(std::span<const RowRole> roles, double* terms);
  void finish_row(HeadRows<float>& head, const RowRole& role, int64_t row, double* terms);
  void sum_blocks(Range blocks, Range lanes, const Own& own, float* sums);
  void write_gradient(int64_t block, Range lanes, bf16* dz);

  Context* ctx_;
  const balora_head_losses& o_;
  HeadOptions options_;
  int64_t vocabulary_, channels_;
  int64_t block_;         // tokens of a block
  int64_t group_ = 0;     // of a group
  int64_t block_groups_;  // of a block, at most
  int64_t rows_ = 0, lanes_ = 0;
  uint32_t* kept_;       // (blocks, lanes / 16, block, 16)
  float* maxima_;        // (groups, lanes) of student and teacher, then factors
  float* group_sums_;    // (groups, kLaneSums, lanes)
  double* totals_;       // (kLaneSums, lanes)
  bf16* packed_;         // hidden states
  float* dh_ = nullptr;  // (segments, lanes, C)
  std::vector<Own> own_;
  Lanes by_lane_;
  std::vector<HeadRow> found_;
  std::vector<Target> targets_;                               // in the order of their tokens
  std::vector<int64_t> target_of_row_;                        // the place of a row's; -1: none
  std::vector<std::vector<head::LaneCandidate>> candidates_;  // of each block
  std::vector<std::vector<TopCandidate<float>>> top_;         // the same by row
  std::vector<std::vector<HeadRows<float>::Place>> places_;   // of each row
  std::vector<std::vector<Element>> elements_;                // the same by block
};

}  // namespace balora
