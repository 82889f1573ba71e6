// Jacobi rotations in shared memory, the core of eigh and svd: a block of threads diagonalises a
// small symmetric matrix, n/2 disjoint rotations a round, and larger matrices are taken apart into
// pairs of blocks of 16 rows that meet in a tournament (block Jacobi: Golub and Van Loan, Matrix
// Computations, section 8.5; one-sided: Demmel and Veselic 1992). Chosen before tridiagonalisation
// because every step is a small dense product, it needs no serial phase, and its small singular
// values are as accurate as the data.
#pragma once
#include "runtime/common.cuh"

namespace balora::cuda {

constexpr int kJacobiThreads = 128;
constexpr int kJacobiRows = 16;                // of a block
constexpr int kJacobiTile = 2 * kJacobiRows;   // order of a pair's problem
constexpr int kJacobiPitch = kJacobiTile + 1;  // of its rows in shared memory
constexpr int kJacobiLargest = 64;             // order that diagonalise() takes
constexpr int kJacobiVisitSweeps = 2;  // within a pair: more would be undone by the other pairs
constexpr int kJacobiSweeps = 30;

// Below which an element (p,q) beside the diagonal (app, aqq) counts as zero.
struct JacobiRule {
  double absolute, relative;  // |apq| <= absolute or |apq| <= relative sqrt(|app aqq|)
  double floor;               // min(|app|, |aqq|) <= floor
};

struct Rotation {
  double c, s, t;  // t = s / c; s == 0: none
};

__device__ inline Rotation rotation_for(double app, double apq, double aqq,
                                        const JacobiRule& rule) {
  const double size = fabs(apq), p = fabs(app), q = fabs(aqq);
  // A NaN compares false and rotates nothing, so that the iteration ends.
  const bool wanted = size > rule.absolute && size > rule.relative * (sqrt(p) * sqrt(q)) &&
                      (p < q ? p : q) > rule.floor;
  if (!wanted) return {1, 0, 0};
  const double tau = (aqq - app) / (2 * apq);
  const double t = (tau < 0 ? -1 : 1) / (fabs(tau) + sqrt(1 + tau * tau));
  const double c = 1 / sqrt(1 + t * t);
  return {c, t * c, t};
}

// The k-th pair of a round in which `players` (even) meet; every two meet once
// in players - 1 rounds.
struct Pair {
  int p, q;  // p < q
};
__host__ __device__ inline Pair tournament(int players, int round, int k) {
  const int others = players - 1;
  if (k == 0) return {round, others};
  int a = round + k, b = round - k;
  if (a >= others) a -= others;
  if (b < 0) b += others;
  return a < b ? Pair{a, b} : Pair{b, a};
}

// Both sides of the symmetric a, whose tile (i,j) of rows pair i and columns pair j is rotated by
// both rotations; i <= j, and the mirrored tile is written too.
__device__ inline void rotate_both(double* a, int pitch, Pair i, Pair j, const Rotation& left,
                                   const Rotation& right) {
  const double a00 = a[i.p * pitch + j.p], a01 = a[i.p * pitch + j.q];
  const double a10 = a[i.q * pitch + j.p], a11 = a[i.q * pitch + j.q];
  const double r00 = left.c * a00 - left.s * a10, r01 = left.c * a01 - left.s * a11;
  const double r10 = left.s * a00 + left.c * a10, r11 = left.s * a01 + left.c * a11;
  const double b00 = right.c * r00 - right.s * r01, b01 = right.s * r00 + right.c * r01;
  const double b10 = right.c * r10 - right.s * r11, b11 = right.s * r10 + right.c * r11;
  a[i.p * pitch + j.p] = a[j.p * pitch + i.p] = b00;
  a[i.p * pitch + j.q] = a[j.q * pitch + i.p] = b01;
  a[i.q * pitch + j.p] = a[j.p * pitch + i.q] = b10;
  a[i.q * pitch + j.q] = a[j.q * pitch + i.q] = b11;
}

// The pair's own 2 x 2: exactly diagonal afterwards.
__device__ inline void rotate_own(double* a, int pitch, Pair i, const Rotation& rotation) {
  const double shift = rotation.t * a[i.p * pitch + i.q];
  a[i.p * pitch + i.p] -= shift;
  a[i.q * pitch + i.q] += shift;
  a[i.p * pitch + i.q] = a[i.q * pitch + i.p] = 0;
}

// One round: rotations of all pairs, then a on both sides and the rows of vt. Returns whether this
// thread found something to rotate.
__device__ inline bool jacobi_round(double* a, double* vt, int order, int round,
                                    const JacobiRule& rule, Rotation* rotations) {
  const int pitch = order + 1, pairs = order / 2;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  bool any = false;
  for (int k = thread; k < pairs; k += threads) {
    const Pair pair = tournament(order, round, k);
    rotations[k] = rotation_for(a[pair.p * pitch + pair.p], a[pair.p * pitch + pair.q],
                                a[pair.q * pitch + pair.q], rule);
    any |= rotations[k].s != 0;
  }
  __syncthreads();
  // The triangle i <= j < pairs folded into a rectangle of pairs / 2 rows.
  for (int at = thread; at < pairs / 2 * (pairs + 1); at += threads) {
    const int row = at / (pairs + 1), col = at % (pairs + 1);
    const int i = col > row ? row : pairs - 1 - row;
    const int j = col > row ? col - 1 : pairs - 1 - col;
    const Rotation left = rotations[i], right = rotations[j];
    if (left.s == 0 && right.s == 0) continue;
    const Pair rows = tournament(order, round, i);
    if (i == j) {
      rotate_own(a, pitch, rows, left);
    } else {
      rotate_both(a, pitch, rows, tournament(order, round, j), left, right);
    }
  }
  for (int at = thread; at < pairs * order; at += threads) {
    const Rotation rotation = rotations[at / order];
    if (rotation.s == 0) continue;
    const Pair rows = tournament(order, round, at / order);
    double& p = vt[rows.p * pitch + at % order];
    double& q = vt[rows.q * pitch + at % order];
    const double before = p;
    p = rotation.c * before - rotation.s * q;
    q = rotation.s * before + rotation.c * q;
  }
  __syncthreads();
  return any;
}

struct JacobiOutcome {
  bool moved;      // the first sweep rotated something
  bool converged;  // the last one did not
};

// vt a0 vt^T becomes diagonal: a (order, order) symmetric and vt (the identity before), both with
// rows order + 1 apart in shared memory, `order` a multiple of 4; rotations: order / 2, shared.
// Called by every thread of a one-dimensional block, between barriers.
__device__ inline JacobiOutcome diagonalise(double* a, double* vt, int order, int sweeps,
                                            const JacobiRule& rule, Rotation* rotations) {
  JacobiOutcome outcome{false, false};
  for (int sweep = 0; sweep < sweeps && !outcome.converged; ++sweep) {
    bool any = false;
    for (int round = 0; round < order - 1; ++round) {
      any |= jacobi_round(a, vt, order, round, rule, rotations);
    }
    any = __syncthreads_or(any) != 0;
    if (sweep == 0) outcome.moved = any;
    outcome.converged = !any;
  }
  return outcome;
}

__device__ inline void set_identity(double* vt, int order) {
  for (int at = static_cast<int>(threadIdx.x); at < order * order;
       at += static_cast<int>(blockDim.x)) {
    vt[at / order * (order + 1) + at % order] = at / order == at % order ? 1 : 0;
  }
}

// ---- Pairs of blocks ----------------------------------------------------------------------------

// Arguments of the kernels of one round. A sweep that follows one without a rotation does nothing.
struct JacobiRound {
  int32_t* moved;    // a flag a sweep, zero at first
  int32_t* rotated;  // a flag a pair: whether its basis is not the identity
  double* bases;     // (pairs, 32, 32): rows are the new basis
  int blocks;        // of the matrix, even
  int sweep = 0, meeting = 0;

  __device__ bool settled() const { return sweep > 0 && moved[sweep - 1] == 0; }
  __device__ Pair pair(int k) const { return tournament(blocks, meeting, k); }
};

// Row of the matrix at row i of a pair's problem.
__device__ inline int64_t pair_row(Pair pair, int i) {
  const int block = i < kJacobiRows ? pair.p : pair.q;
  return static_cast<int64_t>(block) * kJacobiRows + i % kJacobiRows;
}

// Solves the pair's problem in shared memory and leaves its basis for the others.
__device__ inline void visit_pair(double* a, double* vt, const JacobiRound& work,
                                  const JacobiRule& rule, Rotation* rotations) {
  const JacobiOutcome outcome =
      diagonalise(a, vt, kJacobiTile, kJacobiVisitSweeps, rule, rotations);
  double* basis = work.bases + static_cast<int64_t>(blockIdx.x) * kJacobiTile * kJacobiTile;
  for (int at = static_cast<int>(threadIdx.x); at < kJacobiTile * kJacobiTile;
       at += static_cast<int>(blockDim.x)) {
    basis[at] = vt[at / kJacobiTile * kJacobiPitch + at % kJacobiTile];
  }
  if (threadIdx.x == 0) {
    work.rotated[blockIdx.x] = outcome.moved ? 1 : 0;
    if (outcome.moved) atomicOr(work.moved + work.sweep, int32_t{1});
  }
}

__device__ inline void load_basis(const JacobiRound& work, int k, double* tile) {
  const double* basis = work.bases + static_cast<int64_t>(k) * kJacobiTile * kJacobiTile;
  for (int at = static_cast<int>(threadIdx.x); at < kJacobiTile * kJacobiTile;
       at += kJacobiThreads) {
    tile[at / kJacobiTile * kJacobiPitch + at % kJacobiTile] = basis[at];
  }
}

// A thread's 2 x 4 elements of a 32 x 32 tile.
struct TilePart {
  double at[2][4] = {};
  __device__ static int row() { return static_cast<int>(threadIdx.x) / 8 * 2; }
  __device__ static int col() { return static_cast<int>(threadIdx.x) % 8 * 4; }
  __device__ void put(double* tile) const {
    BALORA_UNROLL
    for (int i = 0; i < 2; ++i) {
      BALORA_UNROLL
      for (int j = 0; j < 4; ++j) tile[(row() + i) * kJacobiPitch + col() + j] = at[i][j];
    }
  }
};

// part += left right, or left right^T, of tiles in shared memory, by 128 threads.
template <bool kTransposed>
__device__ inline void multiply_tiles(const double* left, const double* right, TilePart& part) {
  for (int k = 0; k < kJacobiTile; ++k) {
    double a[2], b[4];
    BALORA_UNROLL
    for (int i = 0; i < 2; ++i) a[i] = left[(TilePart::row() + i) * kJacobiPitch + k];
    BALORA_UNROLL
    for (int j = 0; j < 4; ++j) {
      const int col = TilePart::col() + j;
      b[j] = kTransposed ? right[col * kJacobiPitch + k] : right[k * kJacobiPitch + col];
    }
    BALORA_UNROLL
    for (int i = 0; i < 2; ++i) {
      BALORA_UNROLL
      for (int j = 0; j < 4; ++j) part.at[i][j] += a[i] * b[j];
    }
  }
}

// The pair's rows of z (rows `stride` apart), columns [col, min(col + 32, cols)), times the pair's
// basis. basis and tile: shared tiles.
__device__ inline void rotate_rows(const JacobiRound& work, int k, double* z, int64_t stride,
                                   int64_t col, int64_t cols, double* basis, double* tile) {
  const Pair pair = work.pair(k);
  load_basis(work, k, basis);
  for (int at = static_cast<int>(threadIdx.x); at < kJacobiTile * kJacobiTile;
       at += kJacobiThreads) {
    const int i = at / kJacobiTile, j = at % kJacobiTile;
    tile[i * kJacobiPitch + j] = col + j < cols ? z[pair_row(pair, i) * stride + col + j] : 0;
  }
  __syncthreads();
  TilePart part;
  multiply_tiles<false>(basis, tile, part);
  __syncthreads();
  part.put(tile);
  __syncthreads();
  for (int at = static_cast<int>(threadIdx.x); at < kJacobiTile * kJacobiTile;
       at += kJacobiThreads) {
    const int i = at / kJacobiTile, j = at % kJacobiTile;
    if (col + j < cols) z[pair_row(pair, i) * stride + col + j] = tile[i * kJacobiPitch + j];
  }
}

// ranks[i]: the place of values[i] in order; equal ones (and NaNs) keep theirs.
__device__ inline int64_t rank_of(const double* values, int64_t n, int64_t i, bool descending) {
  int64_t rank = 0;
  for (int64_t j = 0; j < n; ++j) {
    const double mine = values[i], other = values[j];
    const bool before = descending ? other > mine : other < mine;
    const bool after = descending ? mine > other : mine < other;
    rank += before || (!after && j < i) ? 1 : 0;
  }
  return rank;
}

}  // namespace balora::cuda
