// Which way a sum of products goes, by expectation on paper, to be measured
// (BALORA_CUDA_LINEAR=own|cublas decides by hand). Own kernel: one pass, nothing of C's size beside
// C, at mma.sync's rate: about 85 % of cuBLAS's on sm_80 to sm_89, about 430 of 700 TFLOP/s on
// sm_90, where only cuBLAS has wgmma. cuBLAS:
// - A weight alone, without bias or scale: into C, rounded by cuBLAS.
// - A weight and one low-rank term (a pair's change), neither bias nor scale: the low-rank product
//   goes to C first, rounded to bf16, and the base's adds C to its f32 sum before it rounds: 4 more
//   bytes an element of C, half of them under the base's product. The first rounding is 2^-8 of the
//   change at most, as those of its factors are, and zero stays zero.
// - Else the products with weights add up in f32 scratch of at most 64 MiB, in equal blocks of
// rows,
//   and the own kernel adds the low-rank terms and the bias to it: 10 more bytes an element
//   (smaller blocks would stay in the L2 cache, and leave cuBLAS waves of tiles that do not fill
//   the device).
// With 3 TB/s the last wins on sm_90 from 2 K (1/430 - 1/700) > 10 / 3e12 s on, K > 1,900. One rule
// for all three, so that a linear goes the same way with and without its adapter.
#include "linear/linear_sum.cuh"

#include <cstdlib>
#include <cstring>

#include "linear/linear_kernel.cuh"
#include "runtime/blas.cuh"

namespace balora::cuda {
namespace {

constexpr int64_t kBlockBytes = int64_t{64} << 20;  // of f32 sums

bool uses_cublas(Context* ctx, int64_t m, int64_t n, int64_t k) {
  const char* choice = std::getenv("BALORA_CUDA_LINEAR");
  if (!choice || !*choice) {
    return state_of(ctx).compute_capability >= 90 && k >= 2048 && m * n >= int64_t{1} << 20;
  }
  if (std::strcmp(choice, "own") == 0) return false;
  if (std::strcmp(choice, "cublas") == 0) return true;
  throw std::runtime_error(std::string("BALORA_CUDA_LINEAR must be own or cublas, got ") + choice);
}

bool row_aligned(const bf16* data, int64_t stride) {
  return aligned16(data) && stride % kPackOf<bf16> == 0;
}

template <int kTile>
void start(Context* ctx, const SumArgs& args) {
  Grid grid;
  grid.blocks = dim3(static_cast<unsigned>(ceil_div(args.m, kTile) * ceil_div(args.n, kTile)));
  grid.threads = dim3(kThreads);
  grid.shared_bytes = shared_bytes<bf16>(kStages * 2 * kTile * kStep);
  launch(ctx, "linear", grid, sum_products<kTile>, args);
}

// One launch of at most kMaxTerms terms.
void launch_sum(Context* ctx, SumArgs args, const SumTerm* terms, size_t count) {
  args.count = 0;
  args.steps = 0;
  for (size_t i = 0; i < count; ++i) {
    if (terms[i].k == 0) continue;
    SumTerm& term = args.terms[args.count++];
    term = terms[i];
    term.a_aligned = row_aligned(term.a, term.a_stride);
    term.b_aligned = row_aligned(term.b, term.b_stride);
    args.steps += static_cast<int32_t>(ceil_div(term.k, kStep));
  }
  args.pairs = args.n % 2 == 0 && reinterpret_cast<uintptr_t>(args.c) % 4 == 0 &&
               reinterpret_cast<uintptr_t>(args.unscaled) % 4 == 0;
  const int64_t large = ceil_div(args.m, 128) * ceil_div(args.n, 128);
  if (large >= state_of(ctx).multiprocessors) {
    start<128>(ctx, args);
  } else {
    start<64>(ctx, args);
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

void sum_with_cublas(Context* ctx, const SumArgs& args, const std::vector<SumTerm>& low_rank,
                     const std::vector<SumTerm>& base) {
  if (low_rank.size() <= 1 && base.size() == 1 && !args.bias && !args.scale) {
    const GemmResult c = {args.c, BALORA_BF16, args.n};
    if (!low_rank.empty()) multiply(ctx, args.m, args.n, low_rank[0], 0, c);
    return multiply(ctx, args.m, args.n, base[0], low_rank.empty() ? 0 : 1, c);
  }
  const int64_t fitting = std::max<int64_t>(kBlockBytes / 4 / args.n, 128);
  const int64_t blocks = ceil_div(args.m, fitting);
  const int64_t block = std::min(ceil_div(ceil_div(args.m, blocks), 128) * 128, args.m);
  float* sums = workspace<float>(ctx, block * args.n);
  const auto moved = [](std::vector<SumTerm> terms, int64_t rows) {
    for (SumTerm& term : terms) term.a += rows * term.a_stride;
    return terms;
  };
  for (int64_t first = 0; first < args.m; first += block) {
    SumArgs part = args;
    part.m = std::min(block, args.m - first);
    part.c = args.c + first * args.n;
    if (args.unscaled) part.unscaled = args.unscaled + first * args.n;
    part.addend = sums;
    double beta = 0;
    for (const SumTerm& term : moved(base, first)) {
      multiply(ctx, part.m, args.n, term, beta, {sums, BALORA_F32, args.n});
      beta = 1;
    }
    sum_with_kernel(ctx, part, moved(low_rank, first));
  }
}

}  // namespace

void sum_terms(Context* ctx, const std::vector<SumTerm>& low_rank, const std::vector<SumTerm>& base,
               const SumOutput& out) {
  if (out.m == 0 || out.n == 0) return;
  SumArgs args{};
  args.m = out.m, args.n = out.n, args.c = out.c;
  args.bias = out.bias, args.scale = out.scale, args.unscaled = out.unscaled;
  int64_t inner = 0;
  for (const SumTerm& term : base) inner += term.k;
  if (!base.empty() && uses_cublas(ctx, out.m, out.n, inner)) {
    return sum_with_cublas(ctx, args, low_rank, base);
  }
  std::vector<SumTerm> terms = low_rank;
  terms.insert(terms.end(), base.begin(), base.end());
  sum_with_kernel(ctx, args, terms);
}

}  // namespace balora::cuda
