// Incremental principal component analyses of many matrices at once.
#include "engine/launch.h"
#include "ops/linalg/linalg.h"
#include "ops/ops.h"
#include "tape/tape.h"

namespace balora {
namespace {

constexpr const char* kOp = "pca_updates";

// Vectors that an analysis of R components in C channels keeps: with those behind the R-th, the
// next search converges in fewer steps. In units of the CPU's products, of which half of the
// channels are the most that a search is worth.
int64_t kept_vectors(int64_t rank, int64_t channels) {
  constexpr int64_t kUnit = 32, kLeastMore = 8;
  const int64_t kept = (rank + kLeastMore + kUnit - 1) / kUnit * kUnit;
  return 2 * kept <= channels ? kept : rank;
}

struct PcaSlots {
  Slot x, vectors, singular, mean, scatter;
  Slot new_vectors, new_singular, new_mean, new_scatter, ratios, cosines;
  int64_t count;
  uint64_t seed;
};

void check_rows(const Tensor& x, int64_t rank) {
  check_matrix(kOp, x);
  const int64_t most = std::min(x.dim(0), x.dim(1));
  if (rank < 1 || rank > most) {
    throw ArgumentError(
        concat(kOp, ": rank must be 1..", most, " for ", x.shape().to_string(), ", got ", rank));
  }
  refuse_gradient(kOp, x);
}

Tensor known(const char* name, const Tensor& tensor, const Shape& shape, const char* letters) {
  check_shape(kOp, name, tensor, shape, letters);
  check_dtype(kOp, name, tensor, DType::kF32);
  refuse_gradient(kOp, tensor);
  return contiguous(tensor.detach());
}

}  // namespace

std::vector<std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>> pca_updates(
    const std::vector<Tensor>& rows, const std::vector<int64_t>& ranks,
    const std::vector<int64_t>& seeds, const std::vector<int64_t>& counts,
    const std::vector<Tensor>& vectors, const std::vector<Tensor>& singular,
    const std::vector<Tensor>& means, const std::vector<Tensor>& scatters) {
  const size_t n = rows.size(), before = vectors.size();
  if (ranks.size() != n || seeds.size() != n || counts.size() != n ||
      (before != n && before != 0) || singular.size() != before || means.size() != before ||
      scatters.size() != before) {
    throw ArgumentError(concat(kOp, ": the lists of the analyses differ in length"));
  }
  LaunchOperands operands;
  std::vector<PcaSlots> slots;
  std::vector<std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>> results;
  for (size_t i = 0; i < n; ++i) {
    const Tensor& x = rows[i];
    const int64_t rank = ranks[i];
    check_rows(x, rank);
    const int64_t channels = x.dim(1), kept = kept_vectors(rank, channels);
    PcaSlots own{.count = counts[i], .seed = static_cast<uint64_t>(seeds[i])};
    own.x = operands.read(contiguous(x.detach()));
    if (before) {
      if (counts[i] < 1) {
        throw ArgumentError(concat(kOp, ": counts must be >= 1, got ", counts[i]));
      }
      own.vectors = operands.read(known("vectors", vectors[i], {kept, channels}, "(P,C)"));
      own.singular = operands.read(known("singular", singular[i], {rank}, "(R)"));
      own.mean = operands.read(known("means", means[i], {channels}, "(C)"));
      own.scatter = operands.read(known("scatters", scatters[i], {1}, "(1)"));
    }
    const auto result = [&](const Shape& shape, Slot PcaSlots::*slot) {
      Tensor made = Tensor::empty(x.engine(), shape, DType::kF32);
      own.*slot = operands.write(made);
      return made;
    };
    const Tensor new_vectors = result({kept, channels}, &PcaSlots::new_vectors);
    const Tensor new_singular = result({rank}, &PcaSlots::new_singular);
    const Tensor new_mean = result({channels}, &PcaSlots::new_mean);
    const Tensor new_scatter = result({1}, &PcaSlots::new_scatter);
    const Tensor ratios = result({rank}, &PcaSlots::ratios);
    const Tensor cosines = result({rank}, &PcaSlots::cosines);
    slots.push_back(own);
    results.emplace_back(new_vectors, new_singular, new_mean, new_scatter, ratios, cosines);
  }
  if (n == 0) return results;
  launch(kOp, operands, [slots = std::move(slots)](Launch& l) {
    std::vector<PcaOperands> tasks;
    for (const PcaSlots& own : slots) {
      tasks.push_back({.x = l[own.x],
                       .vectors = l[own.vectors],
                       .singular = l[own.singular],
                       .mean = l[own.mean],
                       .scatter = l[own.scatter],
                       .new_vectors = l[own.new_vectors],
                       .new_singular = l[own.new_singular],
                       .new_mean = l[own.new_mean],
                       .new_scatter = l[own.new_scatter],
                       .ratios = l[own.ratios],
                       .cosines = l[own.cosines],
                       .count = own.count,
                       .seed = own.seed});
    }
    return call(l.kernels->pca_updates, l.ctx,
                {.tasks = tasks.data(), .count = static_cast<int32_t>(tasks.size())});
  });
  return results;
}

}  // namespace balora
