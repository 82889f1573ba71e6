// Sums of products (linear_sum.cuh) by a tensor-core kernel of our own or by cuBLAS.
//
// The choice is by expectation on paper, to be measured (BALORA_CUDA_LINEAR=own|cublas
// decides by hand). Own kernel: one pass, nothing of C's size beside C, at mma.sync's rate: about
// 85 % of cuBLAS's on sm_80 to sm_89, about 430 of 700 TFLOP/s on sm_90, where only cuBLAS has
// wgmma. The ways of cuBLAS:
// - A weight alone, without bias or scale: into C, rounded by cuBLAS.
// - A weight and one low-rank term (a pair's change), neither bias nor scale: the low-rank product
//   goes to C first, rounded to bf16, and the base's adds C to its f32 sum before it rounds: 4 more
//   bytes an element of C, half of them under the base's product. The first rounding is 2^-8 of the
//   change at most, as those of its factors are, and zero stays zero.
// - Else the products with weights add up in f32 scratch of at most 64 MiB, in equal blocks of
//   rows, and the own kernel adds the low-rank terms and the bias to it: 10 more bytes an element
//   (smaller blocks would stay in the L2 cache, and leave cuBLAS waves of tiles that do not fill
//   the device).
// With 3 TB/s the last wins on sm_90 from 2 K (1/430 - 1/700) > 10 / 3e12 s on, K > 1,900. One rule
// for all three, so that a linear goes the same way with and without its adapter. Where rows must
// not depend on each other the own kernel is always taken: an element's products are added in the
// same order whatever the tile.
//
// A weight in blocks (products/encoded.cuh) comes in one of two ways. In NF4 it has 0.56 bytes an
// element; by arithmetic for one H100, not measured:
// - Up to kDecodedRows rows the own kernel decodes it as it loads a tile: some 15 operations of the
//   plain cores an element (0.5 ps) for each 64 rows, with 0.2 ps of reading below them. A dense
//   bf16 weight takes 0.7 ps to read.
// - With more rows that work is repeated for each tile of rows (16 ps an element at 2,048 rows,
//   where the product takes 6 to 10), so panels of W are decoded once into bounded scratch
//   (slice_of), each for a slice of the result's columns, and multiplied as dense ones are: 2.6
//   bytes, 0.8 ps an element more. Every column has its whole sum in one slice, so the bits are
//   those of the dense weight where the own kernel adds; cuBLAS may take another order.
#include "linear/linear_sum.cuh"

#include <cstring>
#include <stdexcept>

#include "runtime/blas.cuh"

namespace balora::cuda {
namespace {

// ---- Kernel -------------------------------------------------------------------------------------
// C (M,N) = sum over terms of A_t (M,K_t) B_t (K_t,N) in bf16, one f32 sum, then an f32 addend, the
// scale and the bias of the columns and one rounding. Terms are walked as one long inner extent, so
// a base product and its low-rank parts share the pipeline and the accumulators. A block of four
// warps makes a Tile x Tile chunk of C in steps of 32 of the inner extent, each warp a quarter of
// it by mma m16n8k16. Of a step, 2 * Tile * 32 elements come by cp.async into one of three stages
// of shared memory and go to registers by ldmatrix. Tile 128: 48 KiB and 128 accumulators a thread,
// two blocks a multiprocessor (8.0: 512 clocks of mma beside 256 of ldmatrix and 128 of filling a
// step; warps of 64 x 32 would need 384 of ldmatrix). Tile 64 is for results too small to give
// every multiprocessor a block of the large one. Shared rows hold 16-byte chunks in an order xored
// with the row, so that the eight rows of an ldmatrix lie in different banks. Rows that are not
// 16-byte aligned are loaded element by element.

constexpr int kMaxTerms = 24;

// Arguments of the kernel: C (M,N) in bf16, its rows c_stride apart as those of `unscaled`, or in
// f32 where `wide` is given (which may be the addend).
struct SumArgs {
  int64_t m, n, c_stride;
  int32_t count;
  int32_t steps;        // of the inner extents, all terms together
  const float* addend;  // (M,N) or null
  const float* scale;   // (N) or null: 1
  const bf16* bias;     // (N) or null
  bf16* unscaled;       // (M,N) or null
  bf16* c;
  float* wide;
  bool pairs;  // two neighbours of C may be written at once
  SumTerm terms[kMaxTerms];
};

// Weights in blocks that a launch decodes.
constexpr int kMaxDecoded = 4;
struct DecodedWeights {
  int32_t count;
  Encoded w[kMaxDecoded];
};

constexpr int kStep = 32;  // of the inner extent
constexpr int kStages = 3;
constexpr int kThreads = 128;
constexpr int kChunk = 8;  // elements in 16 bytes

// Shared offsets of a 16-byte chunk: in tiles of rows along the inner extent, and along N.
__device__ inline int inner_offset(int row, int chunk) {
  return row * kStep + (chunk ^ (row >> 1 & 3)) * kChunk;
}
template <int kTile>
__device__ inline int outer_offset(int row, int chunk) {
  return row * kTile + (chunk ^ (row & 7)) * kChunk;
}

// 16 bytes to shared memory; elements from `valid` on are zero.
__device__ inline void fetch_chunk(bf16* shared, const bf16* from, const bf16* base, int valid,
                                   bool aligned) {
  if (aligned) {
    cp_async16(shared, valid > 0 ? from : base, 2 * valid);
    return;
  }
  Pack<bf16, kChunk> chunk;
  BALORA_UNROLL
  for (int i = 0; i < kChunk; ++i) chunk.at[i] = i < valid ? from[i] : bf16{0};
  *reinterpret_cast<Pack<bf16, kChunk>*>(shared) = chunk;
}

__device__ inline int clamp_chunk(int64_t left) {
  return left >= kChunk ? kChunk : left > 0 ? static_cast<int>(left) : 0;
}

// Walks the terms' inner extents in steps.
struct SumCursor {
  int term = 0;
  int64_t at = 0;  // of the term's inner extent
  __device__ void advance(const SumArgs& args) {
    at += kStep;
    if (at < args.terms[term].k) return;
    at = 0;
    ++term;
  }
};

// kDecodes: terms may be weights in blocks.
template <int kTile, bool kDecodes>
class SumTile {
 public:
  static constexpr int kWarpTile = kTile / 2;
  static constexpr int kRows = kWarpTile / 16, kCols = kWarpTile / 8;  // mma tiles of a warp
  static constexpr int kSide = kTile * kStep;                          // elements of A or B a stage

  // codes (kMaxDecoded,16): the tables of `decoded`; both null unless kDecodes.
  __device__ SumTile(const SumArgs& args, bf16* shared, int64_t row, int64_t column,
                     const Encoded* decoded = nullptr, const float* codes = nullptr)
      : args_(args),
        shared_(shared),
        row_(row),
        column_(column),
        decoded_(decoded),
        codes_(codes) {}

  __device__ void run() {
    BALORA_UNROLL
    for (int i = 0; i < kRows; ++i) {
      BALORA_UNROLL
      for (int j = 0; j < kCols; ++j) {
        BALORA_UNROLL
        for (int e = 0; e < 4; ++e) sums_[i][j][e] = 0;
      }
    }
    SumCursor fetched, used;
    for (int s = 0; s < kStages - 1; ++s) {
      fetch(fetched, s);
      decode_fetched();
    }
    for (int step = 0; step < args_.steps; ++step) {
      cp_async_wait<kStages - 2>();
      __syncthreads();
      fetch(fetched, (step + kStages - 1) % kStages);
      multiply(args_.terms[used.term].b_inner, step % kStages);
      decode_fetched();
      used.advance(args_);
    }
    cp_async_wait<0>();
    write();
  }

 private:
  // Eights of a weight in blocks that a thread decodes in a step.
  static constexpr int kEights = kTile / 32;

  // Codes of a weight in blocks are loaded to registers, for decode_fetched().
  __device__ void fetch(SumCursor& cursor, int stage) {
    if (cursor.term < args_.count) {
      const SumTerm& term = args_.terms[cursor.term];
      bf16* to = shared_ + stage * 2 * kSide;
      fetch_inner(term.a, term.a_stride, args_.m, row_, term, cursor.at, to, term.a_aligned);
      fetch_b(cursor.term, cursor.at, to + kSide);
      cursor.advance(args_);
    }
    cp_async_commit();
  }

  __device__ void fetch_b(int index, int64_t at, bf16* to) {
    const SumTerm& term = args_.terms[index];
    if constexpr (kDecodes) {
      if (term.decoded >= 0) return fetch_codes(index, at, to);
    }
    if (term.b_inner) {
      fetch_inner(term.b, term.b_stride, args_.n, column_, term, at, to, term.b_aligned);
    } else {
      fetch_outer(term, at, to);
    }
  }

  // kTile rows from `first` on, kStep elements each.
  __device__ void fetch_inner(const bf16* x, int64_t stride, int64_t rows, int64_t first,
                              const SumTerm& term, int64_t at, bf16* to, bool aligned) {
    const int chunk = threadIdx.x % 4, row = threadIdx.x / 4;
    const int valid = clamp_chunk(term.k - at - chunk * kChunk);
    const bf16* from = x + (first + row) * stride + at + chunk * kChunk;
    BALORA_UNROLL
    for (int i = 0; i < kTile / 32; ++i) {
      fetch_chunk(to + inner_offset(row + 32 * i, chunk), from + 32 * i * stride, x,
                  first + row + 32 * i < rows ? valid : 0, aligned);
    }
  }

  // kStep rows of B, kTile elements of N each.
  __device__ void fetch_outer(const SumTerm& term, int64_t at, bf16* to) {
    constexpr int kChunks = kTile / kChunk, kRowsAtOnce = kThreads / kChunks;
    const int chunk = threadIdx.x % kChunks, row = threadIdx.x / kChunks;
    const int valid = clamp_chunk(args_.n - column_ - chunk * kChunk);
    const bf16* from = term.b + (at + row) * term.b_stride + column_ + chunk * kChunk;
    BALORA_UNROLL
    for (int i = 0; i < kStep / kRowsAtOnce; ++i) {
      const int shared_row = row + kRowsAtOnce * i;
      fetch_chunk(to + outer_offset<kTile>(shared_row, chunk),
                  from + kRowsAtOnce * i * term.b_stride, term.b,
                  at + shared_row < term.k ? valid : 0, term.b_aligned);
    }
  }

  // A chunk of B that fetch_inner or fetch_outer would load, one of kEights: its place in the weight
  // and in shared memory.
  struct EncodedChunk {
    int64_t row, column;
    int valid, offset;
  };
  __device__ EncodedChunk encoded_chunk(const SumTerm& term, int64_t at, int i) const {
    if (term.b_inner) {
      const int chunk = threadIdx.x % 4, row = threadIdx.x / 4 + 32 * i;
      const int64_t n = column_ + row, k = at + chunk * kChunk;
      return {n, k, n < args_.n ? clamp_chunk(term.k - k) : 0, inner_offset(row, chunk)};
    }
    constexpr int kChunks = kTile / kChunk, kRowsAtOnce = kThreads / kChunks;
    const int chunk = threadIdx.x % kChunks, row = threadIdx.x / kChunks + kRowsAtOnce * i;
    const int64_t k = at + row, n = column_ + chunk * kChunk;
    return {k, n, k < term.k ? clamp_chunk(args_.n - n) : 0, outer_offset<kTile>(row, chunk)};
  }

  // Whether a chunk's codes are loaded before the product of a step and decoded behind it, so that
  // the product hides the time of the loads. Other formats are decoded in one go.
  __device__ static bool is_early(const Encoded& w, const EncodedChunk& chunk) {
    return w.how.format == BALORA_BLOCKS_FOUR_BIT &&
           is_eight(w, chunk.row * w.columns + chunk.column, chunk.valid);
  }

  __device__ void fetch_codes(int index, int64_t at, bf16* to) {
    const SumTerm& term = args_.terms[index];
    const Encoded& w = decoded_[term.decoded];
    fetched_term_ = index, fetched_at_ = at, fetched_to_ = to;
    BALORA_UNROLL
    for (int i = 0; i < kEights; ++i) {
      const EncodedChunk chunk = encoded_chunk(term, at, i);
      if (is_early(w, chunk)) eights_[i] = load_codes(w, chunk.row * w.columns + chunk.column);
    }
  }

  // Values of what fetch() has left as codes.
  __device__ void decode_fetched() {
    if constexpr (!kDecodes) return;
    if (fetched_term_ < 0) return;
    const SumTerm& term = args_.terms[fetched_term_];
    const Encoded& w = decoded_[term.decoded];
    const float* code = codes_ + 16 * term.decoded;
    BALORA_UNROLL
    for (int i = 0; i < kEights; ++i) {
      const EncodedChunk chunk = encoded_chunk(term, fetched_at_, i);
      float values[kChunk];
      if (is_early(w, chunk)) {
        decode_codes(eights_[i], code, values);
      } else {
        decode_eight(w, code, chunk.row, chunk.column, chunk.valid, values);
      }
      Pack<bf16, kChunk> pack;
      BALORA_UNROLL
      for (int k = 0; k < kChunk; ++k) pack.at[k] = store<bf16>(values[k]);
      *reinterpret_cast<Pack<bf16, kChunk>*>(fetched_to_ + chunk.offset) = pack;
    }
    fetched_term_ = -1;
  }

  __device__ void multiply(bool b_inner, int stage) {
    const bf16* a = shared_ + stage * 2 * kSide;
    const bf16* b = a + kSide;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int top = warp / 2 * kWarpTile, left = warp % 2 * kWarpTile;
    BALORA_UNROLL
    for (int k = 0; k < kStep; k += 16) {
      uint32_t fa[kRows][4], fb[kCols][2];
      BALORA_UNROLL
      for (int i = 0; i < kRows; ++i) {
        ldmatrix_x4(fa[i], a + inner_offset(top + 16 * i + (lane & 15), k / kChunk + (lane >> 4)));
      }
      BALORA_UNROLL
      for (int j = 0; j < kCols; j += 2) {
        uint32_t pair[4];
        if (b_inner) {
          ldmatrix_x4(pair, b + inner_offset(left + 8 * j + (lane & 7) + (lane >> 4) * 8,
                                             k / kChunk + (lane >> 3 & 1)));
        } else {
          ldmatrix_x4_trans(
              pair, b + outer_offset<kTile>(k + (lane & 15), left / kChunk + j + (lane >> 4)));
        }
        fb[j][0] = pair[0], fb[j][1] = pair[1], fb[j + 1][0] = pair[2], fb[j + 1][1] = pair[3];
      }
      BALORA_UNROLL
      for (int i = 0; i < kRows; ++i) {
        BALORA_UNROLL
        for (int j = 0; j < kCols; ++j) mma_bf16(sums_[i][j], fa[i], fb[j]);
      }
    }
  }

  __device__ void write() {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int64_t top = row_ + warp / 2 * kWarpTile + lane / 4;
    const int64_t left = column_ + warp % 2 * kWarpTile + 2 * (lane % 4);
    BALORA_UNROLL
    for (int i = 0; i < kRows; ++i) {
      BALORA_UNROLL
      for (int j = 0; j < kCols; ++j) {
        write_pair(top + 16 * i, left + 8 * j, sums_[i][j][0], sums_[i][j][1]);
        write_pair(top + 16 * i + 8, left + 8 * j, sums_[i][j][2], sums_[i][j][3]);
      }
    }
  }

  __device__ void write_pair(int64_t row, int64_t column, float first, float second) {
    if (row >= args_.m || column >= args_.n) return;
    const bool both = column + 1 < args_.n;
    if (args_.addend) {
      const float* from = args_.addend + row * args_.n + column;
      first += from[0];
      if (both) second += from[1];
    }
    if (args_.unscaled) write_bf16(args_.unscaled, row, column, first, second);
    if (args_.scale) {
      first *= args_.scale[column];
      if (both) second *= args_.scale[column + 1];
    }
    if (args_.bias) {
      first += load(args_.bias[column]);
      if (both) second += load(args_.bias[column + 1]);
    }
    if (args_.wide) {
      float* to = args_.wide + row * args_.n + column;
      to[0] = first;
      if (both) to[1] = second;
      return;
    }
    write_bf16(args_.c, row, column, first, second);
  }

  // Two neighbours of a bf16 (M,N), the second if it is inside.
  __device__ void write_bf16(bf16* c, int64_t row, int64_t column, float first, float second) {
    bf16* to = c + row * args_.c_stride + column;
    const bool both = column + 1 < args_.n;
    if (both && args_.pairs) {
      *reinterpret_cast<Pack<bf16, 2>*>(to) = {store<bf16>(first), store<bf16>(second)};
      return;
    }
    to[0] = store<bf16>(first);
    if (both) to[1] = store<bf16>(second);
  }

  const SumArgs& args_;
  bf16* shared_;
  int64_t row_, column_;
  const Encoded* decoded_;
  const float* codes_;
  int fetched_term_ = -1;  // whose codes are in eights_, for fetched_to_; -1: none
  int64_t fetched_at_ = 0;
  bf16* fetched_to_ = nullptr;
  EightCodes eights_[kEights];
  float sums_[kRows][kCols][4];
};

// The first row and column of the block's tile. Blocks go through C in bands of eight tiles of
// rows, down a band's columns first, so that blocks in work at the same time share rows of A and
// columns of B in the L2 cache.
template <int kTile>
__device__ inline void tile_of_block(const SumArgs& args, int64_t& row, int64_t& column) {
  constexpr int64_t kBand = 8;
  const int64_t rows = (args.m + kTile - 1) / kTile, cols = (args.n + kTile - 1) / kTile;
  const int64_t band = blockIdx.x / (kBand * cols), within = blockIdx.x % (kBand * cols);
  const int64_t height = min(rows - band * kBand, kBand);
  row = (band * kBand + within % height) * kTile;
  column = within / height * kTile;
}

template <int kTile>
__global__ void __launch_bounds__(kThreads, kTile == 128 ? 2 : 4) sum_products(SumArgs args) {
  int64_t row, column;
  tile_of_block<kTile>(args, row, column);
  SharedMemory memory;
  bf16* shared = memory.array<bf16>(kStages * 2 * kTile * kStep);
  SumTile<kTile, false> tile(args, shared, row, column);
  tile.run();
}

// The same with terms that are weights in blocks, for few rows. The codes of a stage are on their
// way while the product of another is made.
constexpr int kDecodedTile = 64;
__global__ void __launch_bounds__(kThreads, 4)
    sum_decoded(SumArgs args, const __grid_constant__ DecodedWeights weights) {
  BALORA_SHARED(float, codes, 16 * kMaxDecoded);
  for (int i = 0; i < weights.count; ++i) load_code(weights.w[i], codes + 16 * i);
  int64_t row, column;
  tile_of_block<kDecodedTile>(args, row, column);
  SharedMemory memory;
  bf16* shared = memory.array<bf16>(kStages * 2 * kDecodedTile * kStep);
  SumTile<kDecodedTile, true> tile(args, shared, row, column, weights.w, codes);
  tile.run();
}

// ---- The choice ---------------------------------------------------------------------------------

constexpr int64_t kBlockBytes = int64_t{64} << 20;  // of f32 sums

// Rows up to which weights in blocks are decoded by the product's kernel.
constexpr int64_t kDecodedRows = 128;

enum class Choice { kNone, kOwn, kCublas };
Choice choice_by_hand(Context* ctx) {
  const char* choice = variable_of(ctx, "BALORA_CUDA_LINEAR");
  if (!choice || !*choice) return Choice::kNone;
  if (std::strcmp(choice, "own") == 0) return Choice::kOwn;
  if (std::strcmp(choice, "cublas") == 0) return Choice::kCublas;
  throw std::runtime_error(std::string("BALORA_CUDA_LINEAR must be own or cublas, got ") + choice);
}

bool uses_cublas(Context* ctx, Choice by_hand, int64_t m, int64_t n, int64_t k) {
  if (by_hand != Choice::kNone) return by_hand == Choice::kCublas;
  return state_of(ctx).compute_capability >= 90 && k >= 2048 && m * n >= int64_t{1} << 20;
}

bool row_aligned(const bf16* data, int64_t stride) {
  return aligned16(data) && stride % kPackOf<bf16> == 0;
}

Grid grid_of(const SumArgs& args, int64_t tile) {
  return {dim3(static_cast<unsigned>(ceil_div(args.m, tile) * ceil_div(args.n, tile))),
          dim3(kThreads), shared_bytes<bf16>(kStages * 2 * tile * kStep)};
}

// One launch of at most kMaxTerms terms.
void launch_sum(Context* ctx, SumArgs args, const SumTerm* terms, size_t count) {
  args.count = 0;
  args.steps = 0;
  DecodedWeights weights{};
  for (size_t i = 0; i < count; ++i) {
    if (terms[i].k == 0) continue;
    SumTerm& term = args.terms[args.count++];
    term = terms[i];
    term.a_aligned = row_aligned(term.a, term.a_stride);
    if (term.encoded) {
      term.decoded = weights.count++;
      weights.w[term.decoded] = encoded_of(*term.encoded);
    } else {
      term.b_aligned = row_aligned(term.b, term.b_stride);
    }
    args.steps += static_cast<int32_t>(ceil_div(term.k, kStep));
  }
  args.pairs = args.c_stride % 2 == 0 && reinterpret_cast<uintptr_t>(args.c) % 4 == 0 &&
               reinterpret_cast<uintptr_t>(args.unscaled) % 4 == 0;
  const int64_t large = ceil_div(args.m, 128) * ceil_div(args.n, 128);
  if (weights.count) {
    launch(ctx, "linear", grid_of(args, kDecodedTile), sum_decoded, args, weights);
  } else if (large >= state_of(ctx).multiprocessors) {
    launch(ctx, "linear", grid_of(args, 128), sum_products<128>, args);
  } else {
    launch(ctx, "linear", grid_of(args, 64), sum_products<64>, args);
  }
}

// args.addend + terms + args.bias -> args.c, in as many launches as the terms need.
void sum_with_kernel(Context* ctx, SumArgs args, const std::vector<SumTerm>& terms) {
  size_t first = 0;
  while (terms.size() - first > kMaxTerms) {
    SumArgs part = args;
    part.bias = nullptr, part.scale = nullptr, part.unscaled = nullptr;
    part.wide =
        args.addend ? const_cast<float*>(args.addend) : workspace<float>(ctx, args.m * args.n);
    launch_sum(ctx, part, terms.data() + first, kMaxTerms);
    args.addend = part.wide;
    first += kMaxTerms;
  }
  launch_sum(ctx, args, terms.data() + first, terms.size() - first);
}

void multiply(Context* ctx, int64_t m, int64_t n, const SumTerm& term, double beta,
              const GemmResult& c) {
  gemm(ctx, {m, n, term.k}, 1, {term.a, BALORA_BF16, term.a_stride},
       {term.b, BALORA_BF16, term.b_stride, term.b_inner}, beta, c);
}

// f32 sums of a block of rows, which all slices of a result share.
struct BlockSums {
  float* data = nullptr;
  int64_t rows = 0;
};
const BlockSums& block_sums(Context* ctx, const SumArgs& args, BlockSums& sums) {
  if (sums.data) return sums;
  const int64_t fitting = std::max<int64_t>(kBlockBytes / 4 / args.n, 128);
  const int64_t blocks = ceil_div(args.m, fitting);
  sums.rows = std::min(ceil_div(ceil_div(args.m, blocks), 128) * 128, args.m);
  sums.data = workspace<float>(ctx, sums.rows * args.n);
  return sums;
}

void sum_with_cublas(Context* ctx, const SumArgs& args, const std::vector<SumTerm>& low_rank,
                     const std::vector<SumTerm>& base, BlockSums& scratch) {
  if (low_rank.size() <= 1 && base.size() == 1 && !args.bias && !args.scale) {
    const GemmResult c = {args.c, BALORA_BF16, args.c_stride};
    if (!low_rank.empty()) multiply(ctx, args.m, args.n, low_rank[0], 0, c);
    return multiply(ctx, args.m, args.n, base[0], low_rank.empty() ? 0 : 1, c);
  }
  const auto [sums, block] = block_sums(ctx, args, scratch);
  const auto moved = [](std::vector<SumTerm> terms, int64_t rows) {
    for (SumTerm& term : terms) term.a += rows * term.a_stride;
    return terms;
  };
  for (int64_t first = 0; first < args.m; first += block) {
    SumArgs part = args;
    part.m = std::min(block, args.m - first);
    part.c = args.c + first * args.c_stride;
    if (args.unscaled) part.unscaled = args.unscaled + first * args.c_stride;
    part.addend = sums;
    double beta = 0;
    for (const SumTerm& term : moved(base, first)) {
      multiply(ctx, part.m, args.n, term, beta, {sums, BALORA_F32, args.n});
      beta = 1;
    }
    sum_with_kernel(ctx, part, moved(low_rank, first));
  }
}

void sum_dense(Context* ctx, const SumArgs& args, const std::vector<SumTerm>& low_rank,
               const std::vector<SumTerm>& base, bool cublas, BlockSums& scratch) {
  if (cublas) return sum_with_cublas(ctx, args, low_rank, base, scratch);
  std::vector<SumTerm> terms = low_rank;
  terms.insert(terms.end(), base.begin(), base.end());
  sum_with_kernel(ctx, args, terms);
}

// Slices of C's columns, each with what the weights in blocks have for it decoded into panels.
void sum_by_slices(Context* ctx, const SumArgs& args, const std::vector<SumTerm>& low_rank,
                   const std::vector<SumTerm>& base, bool cublas, PanelScratch& scratch) {
  int64_t inner = 0;
  for (const SumTerm& term : base) inner += term.encoded ? term.k : 0;
  const int64_t slice = slice_of(ctx, args.n, inner * static_cast<int64_t>(sizeof(bf16)));
  const auto by_chunks = [](int64_t elements) { return ceil_div(elements, kChunk) * kChunk; };
  std::vector<int64_t> offsets;  // of the panels in scratch
  int64_t elements = 0;
  for (const SumTerm& term : base) {
    offsets.push_back(elements);
    if (!term.encoded) continue;
    elements += term.b_inner ? slice * by_chunks(term.k) : term.k * by_chunks(slice);
  }
  bf16* const panels =
      static_cast<bf16*>(scratch.at_least(elements * static_cast<int64_t>(sizeof(bf16))));
  BlockSums sums;
  for (int64_t first = 0; first < args.n; first += slice) {
    const int64_t count = std::min(slice, args.n - first);
    const auto of_slice = [&](std::vector<SumTerm> terms, bool decodes) {
      for (size_t i = 0; i < terms.size(); ++i) {
        SumTerm& term = terms[i];
        if (!decodes || !term.encoded) {
          term.b += first * (term.b_inner ? term.b_stride : 1);
          continue;
        }
        const PanelPlace place = term.b_inner ? PanelPlace{first, count, 0, term.k}
                                              : PanelPlace{0, term.k, first, count};
        bf16* const panel = panels + offsets[i];
        term.b = panel, term.b_stride = by_chunks(place.columns);
        decode_panel(ctx, *term.encoded, place, {panel, BALORA_BF16, term.b_stride});
        term.encoded = nullptr;
      }
      return terms;
    };
    SumArgs part = args;
    part.n = count, part.c = args.c + first;
    if (args.bias) part.bias = args.bias + first;
    if (args.scale) part.scale = args.scale + first;
    if (args.unscaled) part.unscaled = args.unscaled + first;
    sum_dense(ctx, part, of_slice(low_rank, false), of_slice(base, true), cublas, sums);
  }
}

}  // namespace

SumTerm weight_term(const View& x, const View& weight, bool b_inner) {
  return {.a = data_of<bf16>(&x),
          .b = weight.encoding ? nullptr : data_of<bf16>(&weight),
          .a_stride = x.shape[1],
          .b_stride = weight.shape[1],
          .k = narrowed(x.shape[1], "an inner extent of"),
          .b_inner = b_inner,
          .encoded = weight.encoding ? &weight : nullptr};
}

void sum_terms(Context* ctx, const std::vector<SumTerm>& low_rank, const std::vector<SumTerm>& base,
               const SumOutput& out, PanelScratch& panels) {
  if (out.m == 0 || out.n == 0) return;
  SumArgs args{};
  args.m = out.m, args.n = out.n, args.c_stride = out.n, args.c = out.c;
  args.bias = out.bias, args.scale = out.scale, args.unscaled = out.unscaled;
  args.wide = out.wide;
  int64_t inner = 0, encoded = 0;
  for (const SumTerm& term : base) {
    inner += term.k;
    encoded += term.encoded ? 1 : 0;
  }
  const Choice by_hand = choice_by_hand(ctx);
  const bool cublas =
      !base.empty() && !out.wide && !out.by_rows && uses_cublas(ctx, by_hand, out.m, out.n, inner);
  const bool decodes =
      encoded <= kMaxDecoded && out.m <= kDecodedRows && by_hand != Choice::kCublas;
  if (encoded > 0 && !decodes && out.wide) {
    throw std::runtime_error("linear: a wide sum is one of dense weights");
  }
  if (encoded > 0 && !decodes) {
    return sum_by_slices(ctx, args, low_rank, base, cublas, panels);
  }
  BlockSums scratch;
  sum_dense(ctx, args, low_rank, base, cublas && encoded == 0, scratch);
}

}  // namespace balora::cuda
