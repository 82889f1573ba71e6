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
#include "kernels/cpu/runtime/workspace.h"

namespace balora::x86 {
namespace {

using head::LaneCandidate, head::Lanes;

// Hidden states of more rows would take the room of other things in L2; so many at a vocabulary of
// 49,152 are within the bytes.
constexpr int64_t kMostRows = 256;
constexpr int64_t kChunkBytes = int64_t{60} << 20;

// Beyond it, the hidden states and the sums of dh fill several times an L2: at 2,048 channels this
// way is 6% quicker than by row, at 4,096 3% slower.
constexpr int64_t kMostChannels = 2048;

// Bounds of a lane's K largest are held in order (rank_maxima), which takes time for more.
constexpr int64_t kMostRanked = 64;

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

int64_t lanes_of(int64_t rows) {
  return round_up(rows, kTileN);
}

void set_lane(std::vector<uint16_t>& masks, size_t lane) {
  masks[lane / head::kLanes] |= static_cast<uint16_t>(1u << (lane % head::kLanes));
}

class HeadByToken {
 public:
  // `chunk` is what rows_by_token() gave.
  HeadByToken(const HeadCall& call, int64_t chunk);

  // The terms of some rows.
  void compute(int64_t first, int64_t rows);
  // Their parts of dh = dz W and dw += dz^T h.
  void multiply_back();

 private:
  struct Row {
    RowRole role;
    HeadRow found;
    float z = 0, y = 0;  // logits of its target
    std::vector<TopCandidate<float>> top;
    std::vector<HeadRows<float>::Place> places;
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
  using Range = HeadCall::Range;

  bool is_live() const { return o_.teacher.kind == BALORA_TEACHER_LIVE; }
  int64_t operands() const { return is_live() ? 2 : 1; }
  int64_t all_lanes() const { return lanes_ * operands(); }  // the teacher's behind
  int64_t blocks() const { return (vocabulary_ + block_ - 1) / block_; }
  int64_t groups_of(int64_t block) const { return (tokens_of(block) + group_ - 1) / group_; }
  int64_t groups() const { return (blocks() - 1) * groups_of(0) + groups_of(blocks() - 1); }
  int64_t ranked() const { return std::max<int64_t>(call_.options.entropy_top_k, 0); }
  int64_t tokens_of(int64_t block) const { return std::min(block_, vocabulary_ - block * block_); }
  int64_t tokens_of(int64_t block, int64_t group) const {
    return std::min(tokens_of(block) - group * group_, group_);
  }
  uint32_t* kept_of(int64_t block) const { return kept_ + block * block_ * lanes_; }
  float* maxima_of(int64_t block, int64_t group) const {
    return maxima_ + (block * groups_of(0) + group) * all_lanes();
  }
  // The bounds of the last of the K.
  const float* bounds_of(const Own& own) const {
    return own.bounds + std::max<int64_t>(ranked() - 1, 0) * lanes_;
  }

  void begin_rows();
  void compute_blocks();
  void compute_group(int64_t block, int64_t index, const Own& own,
                     std::vector<LaneCandidate>& found);
  void limit_candidates(std::vector<LaneCandidate>& found) const;
  void gather_candidates();
  void finish_rows();
  void finish_row(HeadRows<float>& head, Row& row, int64_t lane);
  void sum_blocks(Range blocks, Range lanes, const Own& own, float* sums);
  void write_gradient(int64_t block, Range lanes, bf16* dz);

  const HeadCall& call_;
  Context* ctx_;
  const balora_head_losses& o_;
  int64_t vocabulary_, channels_;
  int64_t block_;  // tokens of a block
  int64_t group_;  // of a group
  int64_t first_ = 0, lanes_;
  uint32_t* kept_;       // (blocks, lanes / 16, block, 16)
  float* maxima_;        // (groups, lanes) of student and teacher, then factors
  float* group_sums_;    // (groups, kLaneSums, lanes)
  double* totals_;       // (kLaneSums, lanes)
  bf16* packed_;         // hidden states
  float* dh_ = nullptr;  // (segments, lanes, C)
  std::vector<Own> own_;
  Lanes by_lane_;
  std::vector<Row> rows_;
  std::vector<std::vector<LaneCandidate>> candidates_;  // of each block
  std::vector<std::vector<Element>> elements_;          // the same
};

HeadByToken::HeadByToken(const HeadCall& call, int64_t chunk)
    : call_(call),
      ctx_(call.ctx),
      o_(call.o),
      vocabulary_(o_.w->shape[0]),
      channels_(o_.w->shape[1]),
      block_(block_tokens_of(*o_.w)),
      lanes_(lanes_of(chunk)),
      by_lane_(0) {
  group_ = std::min(group_tokens(all_lanes()), block_);
  kept_ = workspace<uint32_t>(ctx_, blocks() * block_ * lanes_);
  maxima_ = workspace<float>(ctx_, groups() * all_lanes());
  group_sums_ = workspace<float>(ctx_, groups() * head::kLaneSums * lanes_);
  totals_ = workspace<double>(ctx_, head::kLaneSums * lanes_);
  packed_ = workspace<bf16>(ctx_, tiles_size(channels_, all_lanes()));
  if (call.wants_gradient()) dh_ = workspace<float>(ctx_, kSegments * lanes_ * channels_);
  // Rows of W that end within a panel take most.
  const TileSum ragged = {lanes_, {{.lda = channels_, .k = channels_}}, {}};
  const int64_t padding = tile_padding(group_ - 1, {&ragged, 1});
  own_.resize(static_cast<size_t>(std::max(ctx_->num_threads, 1)));
  for (Own& own : own_) {
    own.logits = workspace<float>(ctx_, group_ * all_lanes());
    own.padding = workspace<bf16>(ctx_, padding);
    own.bounds = workspace<float>(ctx_, std::max<int64_t>(ranked(), 1) * lanes_);
    if (!call.wants_gradient()) continue;
    own.dz = workspace<bf16>(ctx_, lanes_ * block_);
    own.tiles = workspace<bf16>(ctx_, tiles_size(block_, channels_));
  }
  candidates_.resize(static_cast<size_t>(blocks()));
  elements_.resize(static_cast<size_t>(blocks()));
}

void HeadByToken::compute(int64_t first, int64_t rows) {
  first_ = first, lanes_ = lanes_of(rows);
  rows_.assign(static_cast<size_t>(rows), {});
  begin_rows();
  compute_blocks();
  // The sums of all groups, less the rows' own maxima.
  const head::GroupedLanes grouped = {.maxima = maxima_,
                                      .has_teacher = is_live(),
                                      .sums = group_sums_,
                                      .totals = totals_,
                                      .count = groups(),
                                      .step = all_lanes(),
                                      .lanes = lanes_};
  share_out(ctx_, lanes_ / head::kLanes, 1, [&](int64_t begin, int64_t end) {
    for (int64_t vector = begin; vector < end; ++vector) {
      head::combine_groups(grouped, vector * head::kLanes, by_lane_);
    }
  });
  gather_candidates();
  finish_rows();
}

void HeadByToken::begin_rows() {
  parallel_for(ctx_, std::ssize(rows_), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      rows_[static_cast<size_t>(i)].role = call_.role_of(first_ + i);
    }
  });
  const HeadRows<float> head(call_.options, vocabulary_);
  by_lane_ = Lanes(lanes_);
  for (size_t i = 0; i < rows_.size(); ++i) {
    auto& [role, found, z, y, top, places] = rows_[i];
    found = head.begin(role);
    by_lane_.scale[i] = role.compared() ? static_cast<float>(1 / call_.options.temperature) : 1.0f;
    if (role.teacher.kind == BALORA_TEACHER_LIVE) set_lane(by_lane_.compared, i);
    if (found.squares) set_lane(by_lane_.squares, i);
    if (head.has_entropy(role)) set_lane(by_lane_.ranked, i);
  }
}

void HeadByToken::compute_blocks() {
  // The hidden states are right operands.
  bf16* to = packed_;
  for (const View* h : {o_.h, o_.teacher.hidden}) {
    if (!h) continue;
    const auto* const data = static_cast<const bf16*>(rows_of(h, first_));
    pack_tiles(ctx_, {.data = data, .k_stride = 1, .n_stride = h->stride[0]}, channels_,
               std::ssize(rows_), to);
    to += tiles_size(channels_, lanes_);
  }
  for (const Own& own : own_) {
    std::fill_n(own.bounds, std::max<int64_t>(ranked(), 1) * lanes_, -head::kInfinity);
  }
  share_out(ctx_, blocks(), 1, [&](int64_t begin, int64_t end, int self) {
    for (int64_t block = begin; block < end; ++block) {
      auto& found = candidates_[static_cast<size_t>(block)];
      found.clear();
      for (int64_t group = 0; group < groups_of(block); ++group) {
        compute_group(block, group, own_[static_cast<size_t>(self)], found);
      }
      limit_candidates(found);
    }
  });
}

void HeadByToken::compute_group(int64_t block, int64_t index, const Own& own,
                                std::vector<LaneCandidate>& found) {
  const int64_t tokens = tokens_of(block, index), first = block * block_ + index * group_;
  const int64_t panel_step = group_ * head::kPanelLanes;
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
    multiply(*head_of(o_.teacher, *o_.w), packed_ + tiles_size(channels_, lanes_), teachers);
  }
  float* const sums = group_sums_ + (block * groups_of(0) + index) * head::kLaneSums * lanes_;
  const head::TokenGroup group = {.z = own.logits,
                                  .y = is_live() ? teachers : nullptr,
                                  .panel_step = panel_step,
                                  .tokens = tokens,
                                  .lanes = lanes_,
                                  .first = first,
                                  .maxima = maxima_of(block, index),
                                  .sums = sums,
                                  .kept = kept_of(block) + index * group_ * head::kLanes,
                                  .kept_step = block_ * head::kLanes};
  if (ranked() > 0) {
    head::rank_maxima(group, ranked(), own.bounds);
  } else {
    head::lane_maxima(group.z, group, group.maxima);
  }
  if (group.y) head::lane_maxima(group.y, group, group.maxima + lanes_);
  for (size_t i = 0; i < rows_.size(); ++i) {
    const int64_t token = rows_[i].role.target;
    if (token < first || token >= first + tokens) continue;
    const int64_t offset = group.offset(static_cast<int64_t>(i), token - first);
    rows_[i].z = group.z[offset];
    if (group.y) rows_[i].y = group.y[offset];
  }
  const auto keep = is_live() ? head::keep_lanes<true> : head::keep_lanes<false>;
  for (int64_t lane = 0; lane < lanes_; lane += head::kLanes) {
    keep(group, by_lane_, bounds_of(own), lane, found);
  }
}

// Where a great many logits are equal, K of each lane: the largest, of equal ones the first.
void HeadByToken::limit_candidates(std::vector<LaneCandidate>& found) const {
  constexpr int64_t kTimes = 8;  // as many as there may be without it
  if (std::ssize(found) <= kTimes * ranked() * std::ssize(rows_)) return;
  std::sort(found.begin(), found.end());
  int64_t of_lane = 0;
  int32_t lane = -1;
  std::erase_if(found, [&](const LaneCandidate& candidate) {
    if (candidate.lane != lane) lane = candidate.lane, of_lane = 0;
    return of_lane++ >= ranked();
  });
  found.shrink_to_fit();
}

// Candidates for each row's top-K that no thread's bound leaves out.
void HeadByToken::gather_candidates() {
  std::vector<float> bounds(static_cast<size_t>(lanes_), -head::kInfinity);
  for (const Own& own : own_) {
    std::transform(bounds.begin(), bounds.end(), bounds_of(own), bounds.begin(),
                   [](float a, float b) { return std::max(a, b); });
  }
  share_out(ctx_, blocks(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      std::erase_if(candidates_[static_cast<size_t>(block)], [&](const LaneCandidate& candidate) {
        return !(candidate.logit.value >= bounds[static_cast<size_t>(candidate.lane)]);
      });
    }
  });
  for (const auto& found : candidates_) {
    for (const auto& [lane, logit] : found) rows_[static_cast<size_t>(lane)].top.push_back(logit);
  }
}

void HeadByToken::finish_rows() {
  share_out(ctx_, std::ssize(rows_), 1, [&](int64_t begin, int64_t end) {
    HeadRows<float> head(call_.options, vocabulary_);
    for (int64_t i = begin; i < end; ++i) finish_row(head, rows_[static_cast<size_t>(i)], i);
  });
  for (auto& block : elements_) block.clear();
  for (size_t i = 0; i < rows_.size(); ++i) {
    for (const auto& [token, value] : rows_[i].places) {
      elements_[static_cast<size_t>(token / block_)].push_back(
          {static_cast<int64_t>(i), token % block_, to_bf16(value)});
    }
  }
}

void HeadByToken::finish_row(HeadRows<float>& head, Row& row, int64_t lane) {
  const auto at = static_cast<size_t>(lane);
  auto& [role, found, target_z, target_y, top, places] = row;
  found.shift = static_cast<double>(by_lane_.z[at]);
  found.shift_teacher = static_cast<double>(by_lane_.y[at]);
  const auto total = [&](int which) { return totals_[which * lanes_ + lane]; };
  found.set_sums({.pair = {total(head::kStudent), total(head::kTeachers), total(head::kGap),
                           total(head::kRest)},
                  .squares = total(head::kSquares)});
  if (head.has_entropy(role)) head.top_entropy(top, found);
  head.finish(role, static_cast<double>(target_z), found);
  found.store_terms(call_.terms + BALORA_HEAD_TERMS * (first_ + lane));
  const head::Gradient<float> gradient = head.gradient_of(role, found);
  by_lane_.task[at] = gradient.task;
  by_lane_.student[at] = gradient.student;
  by_lane_.teacher[at] = gradient.teacher;
  const auto scale = static_cast<double>(by_lane_.scale[at]);
  const auto formed = head.form_places(role, row.found, [&](int64_t token) {
    TopCandidate<float> logit = {token, row.z, row.y};
    if (token != row.role.target) {
      const auto same =
          std::find_if(row.top.begin(), row.top.end(),
                       [token](const auto& candidate) { return candidate.index == token; });
      if (same != row.top.end()) logit = *same;
    }
    const auto kept = [scale](float x, double shift) {
      return static_cast<float>(std::exp((static_cast<double>(x) - shift) * scale));
    };
    return std::pair(kept(logit.value, row.found.shift),
                     kept(logit.teacher, row.found.shift_teacher));
  });
  places.assign(formed.begin(), formed.end());
}

void HeadByToken::multiply_back() {
  const Range rows = {first_, first_ + std::ssize(rows_)};
  const int64_t panels = lanes_ / kPanelRows, size = lanes_ * channels_;
  const int64_t segments = std::min(kSegments, blocks());
  const int64_t parts = row_groups(panels, segments, std::ssize(own_), 0.2);
  share_out(ctx_, kSegments * parts, 1, [&](int64_t begin, int64_t end, int self) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t segment = item / parts, part = item % parts;
      sum_blocks({blocks() * segment / kSegments, blocks() * (segment + 1) / kSegments},
                 {panels * part / parts * kPanelRows, panels * (part + 1) / parts * kPanelRows},
                 own_[static_cast<size_t>(self)], dh_ + segment * size);
    }
  });
  if (o_.dh) {
    parallel_for(ctx_, std::ssize(rows_) * channels_, int64_t{1} << 14,
                 [&](int64_t begin, int64_t end) {
                   for (int64_t segment = 1; segment < kSegments; ++segment) {
                     const float* const sums = dh_ + segment * size;
#pragma omp simd
                     for (int64_t i = begin; i < end; ++i) dh_[i] += sums[i];
                   }
                 });
    call_.store_hidden(rows, dh_);
  }
  for (int64_t block = 0; o_.dw && block < blocks(); ++block) {
    call_.add_head(rows, {block * block_, block * block_ + tokens_of(block)},
                   {kept_of(block), BALORA_BF16, 2 * block_, true});
  }
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

// dz (lanes,block) of a block of tokens. Where dw is wanted, it also takes the place of what was
// kept, each row in the first half of its own.
void HeadByToken::write_gradient(int64_t block, Range lanes, bf16* dz) {
  const int64_t tokens = tokens_of(block);
  const auto write = is_live() ? head::lane_gradients<true> : head::lane_gradients<false>;
  for (int64_t lane = lanes.begin; lane < lanes.end; lane += head::kLanes) {
    const uint32_t* const kept = kept_of(block) + lane * block_;
    bf16* const to = dz + (lane - lanes.begin) * block_;
    for (int64_t index = 0; index < groups_of(block); ++index) {
      const int64_t first = index * group_;
      const float* const factors = maxima_of(block, index);
      write(kept + first * head::kLanes, tokens_of(block, index), by_lane_, lane, factors,
            factors + lanes_, to + first, block_);
    }
  }
  for (const Element& element : elements_[static_cast<size_t>(block)]) {
    if (element.row < lanes.begin || element.row >= lanes.end) continue;
    dz[(element.row - lanes.begin) * block_ + element.token] = element.value;
  }
  if (!o_.dw) return;
  auto* const place = reinterpret_cast<bf16*>(kept_of(block));
  for (int64_t lane = lanes.begin; lane < lanes.end; ++lane) {
    std::memcpy(place + lane * 2 * block_, dz + (lane - lanes.begin) * block_,
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
                    o.options.entropy_top_k <= kMostRanked && channels <= kMostChannels &&
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
  const HeadCall call(ctx, o);
  const int64_t chunk = rows_by_token(o);
  HeadByToken head(call, chunk);
  for_chunks(ctx, o.h->shape[0], chunk, [&](int64_t first, int64_t rows) {
    head.compute(first, rows);
    if (call.wants_gradient()) head.multiply_back();
  });
  call.store_sums();
}

}  // namespace balora::x86
