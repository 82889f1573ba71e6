// The head's losses where their logits lie by token: W is then the left operand of its products,
// which is read where it lies, and only the hidden states are packed; a group of tokens gets its
// exponentials while its logits are in L2, and what is kept of them takes half of their memory, so
// that as many rows as by row share what is read of W in half of the memory (token_passes.h); dz of
// a block of tokens is multiplied where it has just been formed. For bf16 in tiles of AMX, and
// losses whose exponentials are kept (head.h): a quarter quicker there than by row, and not
// measured on processors with AVX512-BF16 alone, whose L2 holds less.
#include <algorithm>
#include <cstring>
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

void set_lane(std::vector<uint16_t>& masks, size_t lane) {
  masks[lane / head::kLanes] |= static_cast<uint16_t>(1u << (lane % head::kLanes));
}

class HeadByToken {
 public:
  // `chunk` is what rows_by_token() gave.
  HeadByToken(const HeadCall& call, int64_t chunk)
      : call_(call),
        ctx_(call.ctx),
        o_(call.o),
        vocabulary_(o_.w->shape[0]),
        channels_(o_.w->shape[1]),
        block_(block_tokens_of(*o_.w)),
        lanes_(round_up(chunk, kTileN)),
        grouped_{.lanes = lanes_, .has_teacher = is_live()} {
    group_ = std::min(group_tokens(all_lanes()), block_);
    kept_ = workspace<uint32_t>(ctx_, blocks() * block_ * lanes_);
    groups_ = (block_ + group_ - 1) / group_;
    grouped_.count = blocks() * groups_;
    grouped_.maxima = workspace<float>(ctx_, grouped_.count * all_lanes());
    grouped_.sums = workspace<float>(ctx_, grouped_.count * head::kLaneSums * lanes_);
    grouped_.totals = workspace<double>(ctx_, head::kLaneSums * lanes_);
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

  // The terms of some rows.
  void compute(int64_t first, int64_t rows) {
    first_ = first, lanes_ = grouped_.lanes = round_up(rows, kTileN);
    rows_.assign(static_cast<size_t>(rows), {});
    begin_rows();
    compute_blocks();
    share_out(ctx_, lanes_ / head::kLanes, 1, [&](int64_t begin, int64_t end) {
      for (int64_t vector = begin; vector < end; ++vector) {
        head::combine_groups(grouped_, vector * head::kLanes, by_lane_);
      }
    });
    gather_candidates();
    share_out(ctx_, rows, 1, [&](int64_t begin, int64_t end) {
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

  // Their parts of dh = dz W and dw += dz^T h.
  void multiply_back() {
    const HeadRange rows = {first_, first_ + std::ssize(rows_)};
    const int64_t panels = lanes_ / kPanelRows, size = lanes_ * channels_;
    const int64_t segments = std::min(kSegments, blocks());
    const int64_t parts = row_groups(panels, segments, std::ssize(own_), 0.2);
    share_out(ctx_, segments * parts, 1, [&](int64_t begin, int64_t end, int self) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t segment = item / parts, part = item % parts;
        sum_blocks({blocks() * segment / segments, blocks() * (segment + 1) / segments},
                   {panels * part / parts * kPanelRows, panels * (part + 1) / parts * kPanelRows},
                   own_[static_cast<size_t>(self)], dh_ + segment * size);
      }
    });
    if (o_.dh) {
      parallel_for(ctx_, std::ssize(rows_) * channels_, int64_t{1} << 14,
                   [&](int64_t begin, int64_t end) {
                     for (int64_t segment = 1; segment < segments; ++segment) {
                       const float* const sums = dh_ + segment * size;
#pragma omp simd
                       for (int64_t i = begin; i < end; ++i) dh_[i] += sums[i];
                     }
                   });
      call_.store_hidden(rows, dh_);
    }
    for (int64_t block = 0; o_.dw && block < blocks(); ++block) {
      add_head_gradient(ctx_, *o_.dw, {block * block_, block * block_ + tokens_of(block)},
                        {kept_of(block), BALORA_BF16, 2 * block_, true}, *o_.h, rows);
    }
  }

 private:
  struct Row {
    RowRole role;
    HeadRow found;
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
    float* bounds;  // (K,lanes) of lane_maxima()
    bf16* dz;       // (lanes,block)
    bf16* tiles;    // W of a block
    bf16* padding;  // of a group's rows of W
  };

  bool is_live() const { return o_.teacher.kind == BALORA_TEACHER_LIVE; }
  int64_t all_lanes() const { return grouped_.all_lanes(); }  // the teacher's behind
  int64_t blocks() const { return (vocabulary_ + block_ - 1) / block_; }
  int64_t ranked() const { return std::max<int64_t>(call_.options.entropy_top_k, 0); }
  int64_t tokens_of(int64_t block) const { return std::min(block_, vocabulary_ - block * block_); }
  int64_t tokens_of(int64_t block, int64_t group) const {
    return std::clamp(tokens_of(block) - group * group_, int64_t{0}, group_);
  }
  uint32_t* kept_of(int64_t block) const { return kept_ + block * block_ * lanes_; }
  // A group's number among all.
  int64_t group_at(int64_t block, int64_t group) const { return block * groups_ + group; }
  // The bounds of the last of the K.
  const float* bounds_of(const Own& own) const {
    return own.bounds + std::max<int64_t>(ranked() - 1, 0) * lanes_;
  }

  void begin_rows() {
    by_lane_ = Lanes(lanes_);
    const HeadRows<float> head(call_.options, vocabulary_);
    parallel_for(ctx_, lanes_ / head::kLanes, 1, [&](int64_t begin, int64_t end) {
      const auto last = std::min(static_cast<size_t>(end * head::kLanes), rows_.size());
      for (auto i = static_cast<size_t>(begin * head::kLanes); i < last; ++i) {
        const RowRole& role = rows_[i].role = call_.role_of(first_ + static_cast<int64_t>(i));
        by_lane_.scale[i] = head.scale_of(role);
        if (role.is_live()) set_lane(by_lane_.compared, i);
        if (head.squares(role)) set_lane(by_lane_.squares, i);
        if (head.has_entropy(role)) set_lane(by_lane_.ranked, i);
      }
    });
  }

  void compute_blocks() {
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
        for (int64_t group = 0; group < groups_; ++group) {
          compute_group(block, group, own_[static_cast<size_t>(self)], found);
        }
        limit_candidates(found);
      }
    });
  }

  void compute_group(int64_t block, int64_t index, const Own& own,
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
    const int64_t number = group_at(block, index);
    const head::TokenGroup group = {.z = own.logits,
                                    .y = is_live() ? teachers : nullptr,
                                    .panel_step = panel_step,
                                    .tokens = tokens,
                                    .lanes = lanes_,
                                    .first = first,
                                    .maxima = grouped_.maxima_of(number),
                                    .sums = grouped_.sums_of(number),
                                    .kept = kept_of(block) + index * group_ * head::kLanes,
                                    .kept_step = block_ * head::kLanes};
    head::lane_maxima(group.z, group, group.maxima, ranked(), own.bounds);
    if (group.y) head::lane_maxima(group.y, group, group.maxima + lanes_);
    for (size_t i = 0; i < rows_.size(); ++i) {
      const int64_t token = rows_[i].role.target;
      if (token < first || token >= first + tokens) continue;
      const int64_t offset = group.offset(static_cast<int64_t>(i), token - first);
      rows_[i].found.target = static_cast<double>(group.z[offset]);
      if (group.y) rows_[i].found.target_teacher = static_cast<double>(group.y[offset]);
    }
    const auto keep = is_live() ? head::keep_lanes<true> : head::keep_lanes<false>;
    for (int64_t lane = 0; lane < lanes_; lane += head::kLanes) {
      keep(group, by_lane_, bounds_of(own), lane, found);
    }
  }

  // Where a great many logits are equal, K of each lane: the largest, of equal ones the first.
  void limit_candidates(std::vector<LaneCandidate>& found) const {
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
  void gather_candidates() {
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

  void finish_row(HeadRows<float>& head, Row& row, int64_t lane) {
    const auto at = static_cast<size_t>(lane);
    auto& [role, found, top, places] = row;
    found.shift = static_cast<double>(by_lane_.z[at]);
    found.shift_teacher = static_cast<double>(by_lane_.y[at]);
    const auto total = [&](int which) { return grouped_.totals[which * lanes_ + lane]; };
    found.set_sums({.pair = {total(head::kStudent), total(head::kTeachers), total(head::kGap),
                             total(head::kRest)},
                    .squares = total(head::kSquares)},
                   head.squares(role));
    if (head.has_entropy(role)) head.top_entropy(top, found);
    head.finish(role, found);
    std::copy_n(found.terms, BALORA_HEAD_TERMS, call_.terms + BALORA_HEAD_TERMS * (first_ + lane));
    const head::Gradient<float> gradient = head.gradient_of(role, found);
    by_lane_.task[at] = gradient.task;
    by_lane_.student[at] = gradient.student;
    by_lane_.teacher[at] = gradient.teacher;
    const auto formed = head.form_places(role, found);
    places.assign(formed.begin(), formed.end());
  }

  // sums (lanes,C) = what a range of blocks adds to dh, for a range of lanes.
  void sum_blocks(HeadRange blocks, HeadRange lanes, const Own& own, float* sums) {
    float* const to = sums + lanes.begin * channels_;
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      write_gradient(block, lanes, own.dz);
      const int64_t tokens = tokens_of(block);
      pack_tile_panels(TileMatrix::of(*o_.w, block * block_ * channels_, false), tokens, channels_,
                       0, round_up(channels_, kTileN) / kTileN, own.tiles);
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
  void write_gradient(int64_t block, HeadRange lanes, bf16* dz) {
    const int64_t tokens = tokens_of(block);
    const auto write = is_live() ? head::lane_gradients<true> : head::lane_gradients<false>;
    for (int64_t lane = lanes.begin; lane < lanes.end; lane += head::kLanes) {
      const uint32_t* const kept = kept_of(block) + lane * block_;
      bf16* const to = dz + (lane - lanes.begin) * block_;
      for (int64_t index = 0; index < groups_; ++index) {
        const int64_t first = index * group_;
        const float* const factors = grouped_.maxima_of(group_at(block, index));
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

  const HeadCall& call_;
  Context* ctx_;
  const balora_head_losses& o_;
  int64_t vocabulary_, channels_;
  int64_t block_;   // tokens of a block
  int64_t group_;   // of a group
  int64_t groups_;  // of a block; those of the last one may be empty
  int64_t first_ = 0, lanes_;
  uint32_t* kept_;  // (blocks, lanes / 16, block, 16)
  head::GroupedLanes grouped_;
  bf16* packed_;         // hidden states
  float* dh_ = nullptr;  // (segments, lanes, C)
  std::vector<Own> own_;
  Lanes by_lane_{0};
  std::vector<Row> rows_;
  std::vector<std::vector<LaneCandidate>> candidates_;  // of each block
  std::vector<std::vector<Element>> elements_;          // the same
};

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
                    HeadRows<float>(o.options, vocabulary).keeps() &&
                    (o.options.logit_scale == 0 || o.options.logit_scale == 1) &&
                    o.options.entropy_top_k <= kMostRanked && channels <= kMostChannels;
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
