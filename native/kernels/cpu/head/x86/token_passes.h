// Passes over logits that lie by token, a lane for each row of the batch, so that sums and maxima
// need no look across a vector, and products by the head need none of it packed (by_token.cc).
// A group of tokens gets its exponentials while it is in a cache, less the group's own maxima; what
// is kept of it is rescaled by lane when those of all groups are known. With e^((z - largest) / T)
// and e^((y - largest of y) / T) of student and teacher as x and q, there are kept x and x - q as
// f16, whose error is below that of a row of dz in bf16, by its largest elements; x in f32 where
// there are no teacher's logits.
#pragma once
#include <cstdint>
#include <vector>

#include "tensor/dtype.h"

namespace balora::head {

constexpr int64_t kLanes = 16;       // of a vector
constexpr int64_t kPanelLanes = 32;  // numbers of lanes are multiples of it

// Logits of the student and a teacher, as products leave them: (panels,tokens,32), panels
// `panel_step` apart.
struct TokenGroup {
  const float* z;
  const float* y;  // null: none
  int64_t panel_step, tokens, lanes;
  int64_t first;  // token of the vocabulary

  // Elements from z or y to a lane's logit.
  int64_t offset(int64_t lane, int64_t token) const {
    return lane / kPanelLanes * panel_step + token * kPanelLanes + lane % kPanelLanes;
  }
};

// The largest of each lane of z, at least -FLT_MAX.
void lane_maxima(const float* z, const TokenGroup& group, float* maxima);

// The same of the group's z; and bounds (k,lanes) hold the k largest of what they have seen of each
// lane, in order: maxima of disjoint sets of tokens, so that k logits at least are no smaller than
// the last of them. They begin as -infinity.
void rank_maxima(const TokenGroup& group, int64_t k, float* bounds, float* maxima);

// A logit that is among the K largest of its lane, perhaps, and the teacher's beside it.
struct LaneCandidate {
  int32_t lane, token;
  float value, teacher;
};

// By lane: the maxima of the group, 1 / T of it, and a bound of the K largest; masks of a vector's
// lanes each: those with a teacher, whose q is taken for 0 in others, and with candidates.
struct KeptLanes {
  const float *z, *y, *scale, *bound;
  const uint16_t *compared, *ranked;
};

// KeptSums (head.h) by lane: (kLaneSums,lanes).
constexpr int64_t kLaneSums = 5;
template <typename T>
struct LaneSums {
  T *student, *squares, *teacher, *gap, *rest;

  static LaneSums of(T* sums, int64_t lanes) {
    return {sums, sums + lanes, sums + 2 * lanes, sums + 3 * lanes, sums + 4 * lanes};
  }
};

// Writes what is kept of a group, (lanes / 16, tokens, 16) words, `step` words from one vector of
// lanes to the next one, and the sums of the group.
void keep_lanes(const TokenGroup& group, const KeptLanes& lanes, uint32_t* kept, int64_t step,
                const LaneSums<float>& sums, std::vector<LaneCandidate>& found);

// Maxima and sums of `count` groups in order. For a vector of lanes combine_groups() makes of them
// its shifts and its sums over all groups, and in the place of the maxima the factors of each
// group's x and q.
struct GroupedLanes {
  float *z, *y;                // (count, lanes); y null: no teacher
  float* sums;                 // (count, kLaneSums, lanes), as LaneSums has them
  int64_t count, step, lanes;  // step: from one group's z or y to the next one's
};
void combine_groups(const GroupedLanes& groups, int64_t lane, const float* scale, float* shift_z,
                    float* shift_y, const LaneSums<double>& sums);

// By lane: KeptGradient (head.h) with the factor of q for the gap; `squares` as masks.
struct LaneGradients {
  const float *task, *student, *teacher;
  const uint16_t* squares;
  bool has_teacher;
};

// dz (16,tokens) of a vector of lanes, rows ld apart, from what is kept of `tokens` tokens and the
// factors of its group: rounded, and filled up with zeros to a multiple of 32 tokens.
void lane_gradients(const uint32_t* kept, int64_t tokens, int64_t lane, const LaneGradients& g,
                    const float* factors_x, const float* factors_q, bf16* dz, int64_t ld);

}  // namespace balora::head
