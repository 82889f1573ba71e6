// Low-rank SVDs from products with A and A^T only (kernels/cpu/linalg/krylov.h), from one seed on
// every device.
#include <algorithm>

#include "engine/launch.h"
#include "ops/linalg/linalg.h"
#include "ops/ops.h"
#include "tape/tape.h"

namespace balora {
namespace {

constexpr int64_t kMaxIterations = 1000;  // a large one is a mistake that would never end

void check_task(const Tensor& a, int64_t rank) {
  check_matrix("randomized_svd", a);
  const int64_t most = std::min(a.dim(0), a.dim(1));
  if (rank < 1 || rank > most) {
    throw ArgumentError(concat("randomized_svd: rank must be 1..", most, " for ",
                               a.shape().to_string(), ", got ", rank));
  }
  refuse_gradient("randomized_svd", a);
}

// The tensors of one matrix in a launch.
struct SvdSlots {
  Slot a, u, s, vt;
  uint64_t seed;
};

}  // namespace

std::vector<std::tuple<Tensor, Tensor, Tensor>> randomized_svds(const std::vector<Tensor>& matrices,
                                                                const std::vector<int64_t>& ranks,
                                                                int64_t niter, int64_t oversample,
                                                                const std::vector<int64_t>& seeds) {
  if (ranks.size() != matrices.size() || seeds.size() != matrices.size()) {
    throw ArgumentError("randomized_svd: the lists of matrices, ranks and seeds differ in length");
  }
  if (oversample < 0) {
    throw ArgumentError(concat("randomized_svd: oversample must be >= 0, got ", oversample));
  }
  if (niter > kMaxIterations) {
    throw ArgumentError(
        concat("randomized_svd: niter must be at most ", kMaxIterations, ", got ", niter));
  }
  for (size_t i = 0; i < matrices.size(); ++i) check_task(matrices[i], ranks[i]);
  std::vector<std::tuple<Tensor, Tensor, Tensor>> factors;
  if (matrices.empty()) return factors;
  LaunchOperands all;
  std::vector<SvdSlots> slots;
  for (size_t i = 0; i < matrices.size(); ++i) {
    const Tensor& a = matrices[i];
    const DType wide = accumulator_dtype(a.dtype());
    const Tensor u = Tensor::empty(a.engine(), {a.dim(0), ranks[i]}, wide);
    const Tensor s = Tensor::empty(a.engine(), {ranks[i]}, wide);
    const Tensor vt = Tensor::empty(a.engine(), {ranks[i], a.dim(1)}, wide);
    slots.push_back({.a = all.read(contiguous(a.detach())),
                     .u = all.write(u),
                     .s = all.write(s),
                     .vt = all.write(vt),
                     .seed = static_cast<uint64_t>(seeds[i])});
    factors.emplace_back(u, s, vt);
  }
  launch("randomized_svd", all, [=](Launch& l) {
    std::vector<SvdOperands> tasks;
    for (const SvdSlots& each : slots) {
      tasks.push_back(
          {.a = l[each.a], .u = l[each.u], .s = l[each.s], .vt = l[each.vt], .seed = each.seed});
    }
    return call(l.kernels->randomized_svds, l.ctx,
                {.tasks = tasks.data(),
                 .count = static_cast<int32_t>(tasks.size()),
                 .niter = niter,
                 .oversample = oversample});
  });
  return factors;
}

}  // namespace balora
