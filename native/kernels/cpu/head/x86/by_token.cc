// The head's losses where their logits lie by token: W is then the left operand of its products,
// which is read where it lies, and only the hidden states are packed; a group of tokens gets its
// exponentials while its logits are in L2, and what is kept of them takes half of their memory, so
// that as many rows as by row share what is read of W in half of the memory (token_passes.h); dz of
// a block of tokens is multiplied where it has just been formed. For bf16 in tiles of AMX, and
// losses whose exponentials are kept (head.h): a quarter quicker there than by row, and not
// measured on processors with AVX512-BF16 alone, whose L2 holds less.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>
#include <vector>

#include "kernels/cpu/head/head.h"
#include "kernels/cpu/head/head_products.h"
#include "kernels/cpu/head/x86/token_passes.h"
#include "kernels/cpu/products/tiles.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/stop.h"
#include "kernels/cpu/runtime/workspace.h"

namespace balora::x86 {
namespace {

using head::LaneCandidate;

// Hidden states of more rows would take the room of other things in L2; so many at a vocabulary of
// 49,152 are within the bytes.
constexpr int64_t kMostRows = 256;
constexpr int64_t kChunkBytes = int64_t{60} << 20;

// Beyond it, the hidden states and the sums of dh fill several times an L2: at 2,048 channels this
// way is 6% quicker than by row, at 4,096 3% slower.
constexpr int64_t kMostChannels = 2048;

// Logits of a group, about: what stays in L2 beside the hidden states that make them.
constexpr int64_t kGroupBytes = int64_t{3} << 17;
constexpr int64_t kMostGroupTokens = 256;

int64_t group_tokens(int64_t all_lanes) {
  const int64_t fitting = kGroupBytes / (all_lanes * static_cast<int64_t>(sizeof(float)));
  return std::clamp(fitting / kTileN * kTileN, kTileN, kMostGroupTokens);
}

// W of a block, packed for dh, about: what stays in L2 beside the sums, which fewer steps would
// load and store too often, and the block's dz, which takes more than W where rows are short.
constexpr int64_t kBlockBytes = int64_t{5} << 17;
constexpr int64_t kLeastSteps = 9, kMostSteps = 19;

// An odd number of steps, so that rows of dz begin in different sets of a cache.
int64_t block_tokens_of(const View& w) {
  const int64_t step_bytes = kTileK * w.shape[1] * static_cast<int64_t>(sizeof(bf16));
  const int64_t steps = std::clamp(kBlockBytes / step_bytes, kLeastSteps, kMostSteps);
  const int64_t all = round_up(w.shape[0], kTileK) / kTileK;
  return ((std::min(steps, all) - 1) / 2 * 2 + 1) * kTileK;
}

// Parts of the vocabulary whose sums of dh are taken by themselves, whoever takes them, so that no
// number of threads changes a bit.
constexpr int64_t kSegments = 8;

// Groups of panels of rows that share a segment's work, so that threads have as much of it each;
// each packs W anew, about a fifth of what all rows are multiplied by.
int64_t row_groups(int64_t panels, int64_t blocks, int64_t threads) {
  constexpr double kPacking = 0.2;
  const int64_t segments = std::min(kSegments, blocks);
  int64_t best = 1;
  double most = 0;
  for (int64_t groups = 1; groups <= panels; ++groups) {
    const double value = evenness(segments * groups, threads) * evenness(panels, groups) /
                         (1 + kPacking * static_cast<double>(groups));
    if (value > most) most = value, best = groups;
  }
  return best;
}

int64_t lanes_of(int64_t rows) {
  return round_up(rows, kTileN);
}

void set_lane(std::vector<uint16_t>& masks, int64_t lane) {
  masks[static_cast<size_t>(lane / head::kLanes)] |=
      static_cast<uint16_t>(1u << (lane % head::kLanes));
}

class HeadByToken {
 public:
  // `options` are the operands' with all scales multiplied; `chunk` is what rows_by_token() gave.
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
  using Range = HeadCall<float>::Range;

  bool is_live() const { return o_.teacher.kind == BALORA_TEACHER_LIVE; }
  int64_t operands() const { return is_live() ? 2 : 1; }
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

HeadByToken::Lanes::Lanes(int64_t count) {
  const auto size = static_cast<size_t>(count);
  for (auto* numbers : {&z, &y, &scale, &task, &student, &teacher}) numbers->resize(size);
  for (auto* masks : {&compared, &ranked, &squares}) masks->resize(size / head::kLanes);
}

HeadByToken::HeadByToken(Context* ctx, const balora_head_losses& o, const HeadOptions& options,
                         int64_t chunk)
    : ctx_(ctx),
      o_(o),
      options_(options),
      vocabulary_(o.w->shape[0]),
      channels_(o.w->shape[1]),
      block_(block_tokens_of(*o.w)),
      by_lane_(0) {
  const int64_t lanes = lanes_of(chunk);
  group_ = std::min(group_tokens(lanes * operands()), block_);
  block_groups_ = (block_ + group_ - 1) / group_;
  kept_ = workspace<uint32_t>(ctx, blocks() * block_ * lanes);
  maxima_ = workspace<float>(ctx, groups() * operands() * lanes);
  group_sums_ = workspace<float>(ctx, groups() * head::kLaneSums * lanes);
  totals_ = workspace<double>(ctx, head::kLaneSums * lanes);
  packed_ = workspace<bf16>(ctx, operands() * tiles_size(channels_, lanes));
  const bool has_gradient = o.dh || o.dw;
  if (has_gradient) dh_ = workspace<float>(ctx, kSegments * lanes * channels_);
  // Rows of W that end within a panel take most.
  const TileSum ragged = {lanes, {{.lda = channels_, .k = channels_}}, {}};
  const int64_t padding = tile_padding(group_ - 1, {&ragged, 1});
  own_.resize(static_cast<size_t>(std::max(ctx->num_threads, 1)));
  for (Own& own : own_) {
    own.logits = workspace<float>(ctx, group_ * operands() * lanes);
    own.padding = workspace<bf16>(ctx, padding);
    own.bounds = workspace<float>(ctx, std::max<int64_t>(options.entropy_top_k, 1) * lanes);
    if (!has_gradient) continue;
    own.dz = workspace<bf16>(ctx, lanes * block_);
    own.tiles = workspace<bf16>(ctx, tiles_size(block_, channels_));
  }
  candidates_.resize(static_cast<size_t>(blocks()));
  elements_.resize(static_cast<size_t>(blocks()));
}

int64_t HeadByToken::tokens_of(int64_t block) const {
  return std::min(block_, vocabulary_ - block * block_);
}

int64_t HeadByToken::tokens_of(int64_t block, int64_t group) const {
  return std::clamp<int64_t>(tokens_of(block) - group * group_, 0, group_);
}

head::LaneSums<double> HeadByToken::totals() const {
  return head::LaneSums<double>::of(totals_, lanes_);
}

void HeadByToken::compute(int64_t first, std::span<const RowRole> roles, double* terms) {
  rows_ = std::ssize(roles), lanes_ = lanes_of(rows_);
  begin_rows(roles);
  compute_blocks(first);
  combine();
  gather_candidates();
  finish_rows(roles, terms);
}

void HeadByToken::begin_rows(std::span<const RowRole> roles) {
  const HeadRows<float> head(options_, vocabulary_);
  by_lane_ = Lanes(lanes_);
  found_.clear(), targets_.clear();
  for (int64_t row = 0; row < rows_; ++row) {
    const RowRole& role = roles[static_cast<size_t>(row)];
    const HeadRow& found = found_.emplace_back(head.begin(role));
    by_lane_.scale[static_cast<size_t>(row)] =
        role.compared() ? static_cast<float>(1 / options_.temperature) : 1.0f;
    if (role.teacher.kind == BALORA_TEACHER_LIVE) set_lane(by_lane_.compared, row);
    if (found.squares) set_lane(by_lane_.squares, row);
    if (head.has_entropy(role)) set_lane(by_lane_.ranked, row);
    if (role.target >= 0) targets_.push_back({role.target, row});
  }
  std::sort(targets_.begin(), targets_.end(),
            [](const Target& a, const Target& b) { return a.token < b.token; });
  target_of_row_.assign(roles.size(), -1);
  for (size_t i = 0; i < targets_.size(); ++i) {
    target_of_row_[static_cast<size_t>(targets_[i].row)] = static_cast<int64_t>(i);
  }
}

// The hidden states as right operands.
void HeadByToken::pack(int64_t first) {
  bf16* to = packed_;
  for (const View* h : {o_.h, o_.teacher.hidden}) {
    if (!h) continue;
    const auto* const data = static_cast<const bf16*>(rows_of(h, first));
    pack_tiles(ctx_, {.data = data, .k_stride = 1, .n_stride = h->stride[0]}, channels_, rows_, to);
    to += tiles_size(channels_, rows_);
  }
}

void HeadByToken::compute_blocks(int64_t first) {
  pack(first);
  const int64_t k = std::max<int64_t>(options_.entropy_top_k, 1);
  for (const Own& own : own_) {
    std::fill_n(own.bounds, k * lanes_, -std::numeric_limits<float>::infinity());
  }
  share_out(ctx_, blocks(), 1, [&](int64_t begin, int64_t end, int self) {
    for (int64_t block = begin; block < end; ++block) {
      auto& found = candidates_[static_cast<size_t>(block)];
      found.clear();
      for (int64_t group = 0; group < block_groups_; ++group) {
        compute_group(block, group, own_[static_cast<size_t>(self)], found);
      }
      limit_candidates(found);
    }
  });
}

void HeadByToken::compute_group(int64_t block, int64_t index, const Own& own,
                                std::vector<LaneCandidate>& found) {
  const int64_t at = block * block_groups_ + index, tokens = tokens_of(block, index);
  const int64_t panel_step = group_ * head::kPanelLanes, first = block * block_ + index * group_;
  float* const maxima = maxima_of(at);
  float* const sums = group_sums_ + at * head::kLaneSums * lanes_;
  if (tokens == 0) {
    std::fill_n(maxima, all_lanes(), std::numeric_limits<float>::lowest());
    std::fill_n(sums, head::kLaneSums * lanes_, 0.0f);
    return;
  }
  const auto multiply = [&](const View& head, const bf16* tiles, float* logits) {
    const auto* const rows = static_cast<const bf16*>(rows_of(&head, first));
    const TileSum product = {
        lanes_,
        {{rows, channels_, channels_, tiles}},
        {.c = logits, .dtype = BALORA_F32, .ldc = head::kPanelLanes, .panel_step = panel_step}};
    run_tiles_alone(tokens, {&product, 1}, own.padding);
  };
  float* const teachers = own.logits + lanes_ / head::kPanelLanes * panel_step;
  multiply(*o_.w, packed_, own.logits);
  if (is_live()) {
    multiply(*head_of(o_.teacher, *o_.w), packed_ + tiles_size(channels_, rows_), teachers);
  }
  const head::TokenGroup group = {.z = own.logits,
                                  .y = is_live() ? teachers : nullptr,
                                  .panel_step = panel_step,
                                  .tokens = tokens,
                                  .lanes = lanes_,
                                  .first = first};
  const int64_t k = options_.entropy_top_k;
  if (k > 0) {
    head::rank_maxima(group, k, own.bounds, maxima);
  } else {
    head::lane_maxima(group.z, group, maxima);
  }
  if (group.y) head::lane_maxima(group.y, group, maxima + lanes_);
  take_targets(group);
  const head::KeptLanes by = {.z = maxima,
                              .y = maxima + lanes_,
                              .scale = by_lane_.scale.data(),
                              .bound = own.bounds + std::max<int64_t>(k - 1, 0) * lanes_,
                              .compared = by_lane_.compared.data(),
                              .ranked = by_lane_.ranked.data()};
  head::keep_lanes(group, by, kept_of(block) + index * group_ * head::kLanes, block_ * head::kLanes,
                   head::LaneSums<float>::of(sums, lanes_), found);
}

// Logits of the targets that are in a group.
void HeadByToken::take_targets(const head::TokenGroup& group) {
  const auto before = [](const Target& target, int64_t token) { return target.token < token; };
  auto target = std::lower_bound(targets_.begin(), targets_.end(), group.first, before);
  for (; target != targets_.end() && target->token < group.first + group.tokens; ++target) {
    const int64_t offset = group.offset(target->row, target->token - group.first);
    target->z = group.z[offset];
    if (group.y) target->y = group.y[offset];
  }
}

// Where a great many logits are equal, K of each lane: the largest, of equal ones the first.
void HeadByToken::limit_candidates(std::vector<LaneCandidate>& found) const {
  constexpr int64_t kTimes = 8;  // as many as there may be without it
  const int64_t k = options_.entropy_top_k;
  if (std::ssize(found) <= kTimes * k * rows_) return;
  std::sort(found.begin(), found.end(), [](const LaneCandidate& a, const LaneCandidate& b) {
    if (a.lane != b.lane) return a.lane < b.lane;
    return ranks_before(a.value, a.token, b.value, b.token);
  });
  int64_t of_lane = 0;
  int32_t lane = -1;
  std::erase_if(found, [&](const LaneCandidate& candidate) {
    if (candidate.lane != lane) lane = candidate.lane, of_lane = 0;
    return of_lane++ >= k;
  });
  found.shrink_to_fit();
}

// The sums of all groups, less the rows' own maxima.
void HeadByToken::combine() {
  const head::GroupedLanes grouped = {.z = maxima_,
                                      .y = is_live() ? maxima_ + lanes_ : nullptr,
                                      .sums = group_sums_,
                                      .count = groups(),
                                      .step = all_lanes(),
                                      .lanes = lanes_};
  share_out(ctx_, lanes_ / head::kLanes, 1, [&](int64_t begin, int64_t end) {
    for (int64_t vector = begin; vector < end; ++vector) {
      head::combine_groups(grouped, vector * head::kLanes, by_lane_.scale.data(), by_lane_.z.data(),
                           by_lane_.y.data(), totals());
    }
  });
}

// Candidates for each row's top-K that no thread's bound leaves out.
void HeadByToken::gather_candidates() {
  top_.resize(static_cast<size_t>(rows_));
  for (auto& row : top_) row.clear();
  if (options_.entropy_top_k <= 0) return;
  const int64_t last = (options_.entropy_top_k - 1) * lanes_;
  std::vector<float> bounds(own_[0].bounds + last, own_[0].bounds + last + lanes_);
  for (const Own& own : own_) {
    for (size_t i = 0; i < bounds.size(); ++i) {
      bounds[i] = std::max(bounds[i], own.bounds[static_cast<size_t>(last) + i]);
    }
  }
  share_out(ctx_, blocks(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      std::erase_if(candidates_[static_cast<size_t>(block)], [&](const LaneCandidate& candidate) {
        return !(candidate.value >= bounds[static_cast<size_t>(candidate.lane)]);
      });
    }
  });
  for (const auto& found : candidates_) {
    for (const LaneCandidate& candidate : found) {
      top_[static_cast<size_t>(candidate.lane)].push_back(
          {candidate.token, candidate.value, candidate.teacher});
    }
  }
}

void HeadByToken::finish_rows(std::span<const RowRole> roles, double* terms) {
  places_.assign(roles.size(), {});
  share_out(ctx_, rows_, 1, [&](int64_t begin, int64_t end) {
    HeadRows<float> head(options_, vocabulary_);
    for (int64_t row = begin; row < end; ++row) {
      finish_row(head, roles[static_cast<size_t>(row)], row, terms + BALORA_HEAD_TERMS * row);
    }
  });
  for (auto& block : elements_) block.clear();
  for (int64_t row = 0; row < rows_; ++row) {
    for (const auto& place : places_[static_cast<size_t>(row)]) {
      const int64_t block = place.index / block_;
      elements_[static_cast<size_t>(block)].push_back(
          {row, place.index - block * block_, to_bf16(place.value)});
    }
  }
}

void HeadByToken::finish_row(HeadRows<float>& head, const RowRole& role, int64_t row,
                             double* terms) {
  const auto at = static_cast<size_t>(row);
  const int64_t target_at = target_of_row_[at];
  const Target target = target_at >= 0 ? targets_[static_cast<size_t>(target_at)] : Target{-1, row};
  HeadRow& found = found_[at];
  found.shift = static_cast<double>(by_lane_.z[at]);
  found.shift_teacher = static_cast<double>(by_lane_.y[at]);
  const head::LaneSums<double> sums = totals();
  found.set_sums({.pair = {sums.student[row], sums.teacher[row], sums.gap[row], sums.rest[row]},
                  .squares = sums.squares[row]});
  std::vector<TopCandidate<float>>& top = top_[at];
  if (head.has_entropy(role)) {
    head.choose_top_k(top);
    head.top_entropy(found);
  }
  head.finish(role, static_cast<double>(target.z), found);
  found.store_terms(terms);
  const head::KeptGradient<float> gradient = head.kept_gradient(role, found);
  by_lane_.task[at] = gradient.task;
  by_lane_.student[at] = gradient.student;
  by_lane_.teacher[at] = head.teacher_factor(role, found);
  const double scale = static_cast<double>(by_lane_.scale[at]);
  const auto places = head.form_places(role, found, [&](int64_t token) {
    float z = target.z, y = target.y;
    if (token != target.token) {
      const auto same = std::find_if(top.begin(), top.end(), [token](const auto& candidate) {
        return candidate.index == token;
      });
      if (same != top.end()) z = same->value, y = same->teacher;
    }
    return std::pair(
        static_cast<float>(std::exp((static_cast<double>(z) - found.shift) * scale)),
        static_cast<float>(std::exp((static_cast<double>(y) - found.shift_teacher) * scale)));
  });
  places_[at].assign(places.begin(), places.end());
}

void HeadByToken::multiply_back(float* dh) {
  const int64_t panels = lanes_ / kPanelRows;
  const int64_t parts = row_groups(panels, blocks(), std::ssize(own_));
  share_out(ctx_, kSegments * parts, 1, [&](int64_t begin, int64_t end, int self) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t segment = item / parts, part = item % parts;
      sum_blocks({blocks() * segment / kSegments, blocks() * (segment + 1) / kSegments},
                 {panels * part / parts * kPanelRows, panels * (part + 1) / parts * kPanelRows},
                 own_[static_cast<size_t>(self)], dh_ + segment * lanes_ * channels_);
    }
  });
  if (!dh) return;
  parallel_for(ctx_, rows_ * channels_, int64_t{1} << 14, [&](int64_t begin, int64_t end) {
    std::copy(dh_ + begin, dh_ + end, dh + begin);
    for (int64_t segment = 1; segment < kSegments; ++segment) {
      const float* const sums = dh_ + segment * lanes_ * channels_;
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) dh[i] += sums[i];
    }
  });
}

// sums (lanes,C) = what a range of blocks adds to dh, for a range of lanes.
void HeadByToken::sum_blocks(Range blocks, Range lanes, const Own& own, float* sums) {
  float* const to = sums + lanes.begin * channels_;
  if (blocks.begin == blocks.end) {
    std::fill_n(to, (lanes.end - lanes.begin) * channels_, 0.0f);
    return;
  }
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    write_gradient(block, lanes, own.dz);
    const int64_t tokens = tokens_of(block);
    pack_tile_panels(TileMatrix::of(*o_.w, block * block_ * channels_, false), tokens, channels_, 0,
                     round_up(channels_, kTileN) / kTileN, own.tiles);
    const TileSum sum = {channels_,
                         {{.a = own.dz,
                           .lda = block_,
                           .k = round_up(tokens, kTileK),
                           .tiles = own.tiles,
                           .used = tokens}},
                         {to, BALORA_F32, channels_, block != blocks.begin}};
    run_tiles_alone(lanes.end - lanes.begin, {&sum, 1}, nullptr);
  }
}

// dz (lanes,block) of a block of tokens, and in the place of what was kept where dw is wanted.
void HeadByToken::write_gradient(int64_t block, Range lanes, bf16* dz) {
  const head::LaneGradients gradients = {.task = by_lane_.task.data(),
                                         .student = by_lane_.student.data(),
                                         .teacher = by_lane_.teacher.data(),
                                         .squares = by_lane_.squares.data(),
                                         .has_teacher = is_live()};
  const int64_t tokens = tokens_of(block);
  for (int64_t lane = lanes.begin; lane < lanes.end; lane += head::kLanes) {
    const uint32_t* const kept = kept_of(block) + lane * block_;
    for (int64_t index = 0; index * group_ < tokens; ++index) {
      const float* const factors = maxima_of(block * block_groups_ + index);
      head::lane_gradients(kept + index * group_ * head::kLanes, tokens_of(block, index), lane,
                           gradients, factors, factors + lanes_,
                           dz + (lane - lanes.begin) * block_ + index * group_, block_);
    }
  }
  for (const Element& element : elements_[static_cast<size_t>(block)]) {
    if (element.row < lanes.begin || element.row >= lanes.end) continue;
    dz[(element.row - lanes.begin) * block_ + element.token] = element.value;
  }
  if (!o_.dw) return;
  auto* const place = reinterpret_cast<bf16*>(kept_of(block));
  for (int64_t lane = lanes.begin; lane < lanes.end; ++lane) {
    std::memcpy(place + lane * dz_ld(), dz + (lane - lanes.begin) * block_,
                static_cast<size_t>(tokens) * sizeof(bf16));
  }
}

}  // namespace

int64_t rows_by_token(const balora_head_losses& o) {
  const int64_t vocabulary = o.w->shape[0], channels = o.w->shape[1];
  const bool live = o.teacher.kind == BALORA_TEACHER_LIVE;
  const int64_t operands = live ? 2 : 1;
  const auto in_place = [](const View& h, const View& w) {
    return !w.encoding && head_fits_tiles(h, w);
  };
  const bool fits = tiles_use_amx() && in_place(*o.h, *o.w) &&
                    (!live || in_place(*o.teacher.hidden, *head_of(o.teacher, *o.w))) &&
                    HeadRows<float>::keeps(o.options, vocabulary) &&
                    (o.options.logit_scale == 0 || o.options.logit_scale == 1) &&
                    o.options.entropy_top_k <= kInsertionLimit && channels <= kMostChannels &&
                    vocabulary <= std::numeric_limits<int32_t>::max();
  if (!fits) return 0;
  // A word of what is kept of each token, the maxima and sums of each group, the hidden states and
  // the sums of dh.
  const int64_t groups = vocabulary / group_tokens(kMostRows * operands) + 1;
  const int64_t row_bytes =
      4 * (vocabulary + groups * (operands + head::kLaneSums) + kSegments * channels) +
      2 * operands * channels;
  const int64_t budget = std::min(chunk_budget(o.options, kChunkBytes), kMostRows * row_bytes);
  const int64_t rows = chunk_rows(o.h->shape[0], budget, row_bytes);
  return rows >= kPanelRows ? rows : 0;
}

bool takes_by_token(const balora_head_losses& o) {
  return rows_by_token(o) > 0;
}

void head_losses_by_token(Context* ctx, const balora_head_losses& o) {
  const HeadCall<float> call(ctx, o);
  const int64_t chunk = rows_by_token(o), all = o.h->shape[0], vocabulary = o.w->shape[0];
  HeadByToken head(ctx, o, call.options, chunk);
  float* const sum = o.dh ? workspace<float>(ctx, chunk * o.h->shape[1]) : nullptr;
  for (int64_t first = 0; first < all && !is_stopped(ctx); first += chunk) {
    const int64_t rows = std::min(chunk, all - first);
    std::vector<RowRole> roles(static_cast<size_t>(rows));
    parallel_for(ctx, rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) roles[static_cast<size_t>(i)] = call.role_of(first + i);
    });
    head.compute(first, roles, call.terms + BALORA_HEAD_TERMS * first);
    if (!call.wants_gradient()) continue;
    head.multiply_back(sum);
    if (sum) call.store_hidden({first, first + rows}, sum);
    const int64_t block = head.block_tokens();
    for (int64_t token = 0; o.dw && token < vocabulary; token += block) {
      call.add_head({first, first + rows}, {token, std::min(token + block, vocabulary)},
                    head.gradient_of_block(token));
    }
  }
  call.store_sums();
}

}  // namespace balora::x86
