// Some singular triplets of many matrices: the leading ones from products with A and A^T only
// (kernels/cpu/linalg/krylov.h), from one seed on every device, and the last ones
// (kernels/cpu/linalg/trailing_svd.h).
#include <algorithm>

#include "engine/launch.h"
#include "ops/linalg/linalg.h"
#include "ops/ops.h"
#include "tape/tape.h"

namespace balora {
namespace {

constexpr int64_t kMaxIterations = 1000;  // a large one is a mistake that would never end

using Factors = std::vector<std::tuple<Tensor, Tensor, Tensor>>;

void check_task(const char* op, const Tensor& a, int64_t rank) {
  check_matrix(op, a);
  const int64_t most = std::min(a.dim(0), a.dim(1));
  if (rank < 1 || rank > most) {
    throw ArgumentError(
        concat(op, ": rank must be 1..", most, " for ", a.shape().to_string(), ", got ", rank));
  }
  refuse_gradient(op, a);
}

// The tensors of one matrix in a launch.
struct SvdSlots {
  Slot a, u, s, vt;
  uint64_t seed;
};

// The tensors of all matrices, checked.
struct SvdTensors {
  SvdTensors(const char* op, const std::vector<Tensor>& matrices, const std::vector<int64_t>& ranks,
             const std::vector<int64_t>& seeds) {
    if (ranks.size() != matrices.size() || seeds.size() != matrices.size()) {
      throw ArgumentError(concat(op, ": the lists of matrices, ranks and seeds differ in length"));
    }
    for (size_t i = 0; i < matrices.size(); ++i) check_task(op, matrices[i], ranks[i]);
    for (size_t i = 0; i < matrices.size(); ++i) {
      const Tensor& a = matrices[i];
      const DType wide = accumulator_dtype(a.dtype());
      const Tensor u = Tensor::empty(a.engine(), {a.dim(0), ranks[i]}, wide);
      const Tensor s = Tensor::empty(a.engine(), {ranks[i]}, wide);
      const Tensor vt = Tensor::empty(a.engine(), {ranks[i], a.dim(1)}, wide);
      slots.push_back({.a = operands.read(contiguous(a.detach())),
                       .u = operands.write(u),
                       .s = operands.write(s),
                       .vt = operands.write(vt),
                       .seed = static_cast<uint64_t>(seeds[i])});
      factors.emplace_back(u, s, vt);
    }
  }

  LaunchOperands operands;
  std::vector<SvdSlots> slots;
  Factors factors;
};

std::vector<SvdOperands> tasks_of(const std::vector<SvdSlots>& slots, Launch& l) {
  std::vector<SvdOperands> tasks;
  for (const SvdSlots& each : slots) {
    tasks.push_back(
        {.a = l[each.a], .u = l[each.u], .s = l[each.s], .vt = l[each.vt], .seed = each.seed});
  }
  return tasks;
}

}  // namespace

Factors randomized_svds(const std::vector<Tensor>& matrices, const std::vector<int64_t>& ranks,
                        int64_t niter, int64_t oversample, const std::vector<int64_t>& seeds) {
  if (oversample < 0) {
    throw ArgumentError(concat("randomized_svd: oversample must be >= 0, got ", oversample));
  }
  if (niter > kMaxIterations) {
    throw ArgumentError(
        concat("randomized_svd: niter must be at most ", kMaxIterations, ", got ", niter));
  }
  const SvdTensors all("randomized_svd", matrices, ranks, seeds);
  if (matrices.empty()) return {};
  launch("randomized_svd", all.operands, [=, slots = all.slots](Launch& l) {
    const std::vector<SvdOperands> tasks = tasks_of(slots, l);
    return call(l.kernels->randomized_svds, l.ctx,
                {.tasks = tasks.data(),
                 .count = static_cast<int32_t>(tasks.size()),
                 .niter = niter,
                 .oversample = oversample});
  });
  return all.factors;
}

Factors trailing_svds(const std::vector<Tensor>& matrices, const std::vector<int64_t>& ranks,
                      const std::vector<int64_t>& seeds) {
  const SvdTensors all("trailing_svds", matrices, ranks, seeds);
  if (matrices.empty()) return {};
  launch("trailing_svds", all.operands, [slots = all.slots](Launch& l) {
    const std::vector<SvdOperands> tasks = tasks_of(slots, l);
    return call(l.kernels->trailing_svds, l.ctx,
                {.tasks = tasks.data(), .count = static_cast<int32_t>(tasks.size())});
  });
  return all.factors;
}

}  // namespace balora
