// The thin singular value decomposition A = U diag(s) Vt. Backward of the factors after Townsend
// (2016); of the values alone:
//   dA = U diag(ds) Vt
#include <algorithm>

#include "engine/launch.h"
#include "ops/linalg/linalg.h"
#include "ops/ops.h"
#include "tape/tape.h"

namespace balora {
namespace {

// dy: gradients of u, s, vt; undefined ones count as zero.
void add_svd_gradient(const Saved& u, const Saved& s, const Saved& vt, const Tensor& du,
                      const Tensor& ds, const Tensor& dvt, GradSink& sink) {
  const Tensor u_ = u.get(), vt_ = vt.get();
  const Tensor da = Tensor::empty(u_.engine(), {u_.dim(0), vt_.dim(1)}, u_.dtype());
  const auto flat = [](const Tensor& t) { return t.defined() ? contiguous(t) : t; };
  using O = balora_svd_backward;
  launch<O>("svd_backward", &KernelTable::svd_backward,
            {{&O::u, u_},
             {&O::s, s.get()},
             {&O::vt, vt_},
             {&O::du, flat(du)},
             {&O::ds, flat(ds)},
             {&O::dvt, flat(dvt)}},
            {{&O::da, da}});
  sink.add(0, da);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> svd(const Tensor& a) {
  check_matrix("svd", a);
  const int64_t m = a.dim(0), n = a.dim(1), k = std::min(m, n);
  const Tensor x = contiguous(a.detach());
  const Tensor u = Tensor::empty(a.engine(), {m, k}, a.dtype());
  const Tensor s = Tensor::empty(a.engine(), {k}, accumulator_dtype(a.dtype()));
  const Tensor vt = Tensor::empty(a.engine(), {k, n}, a.dtype());
  using O = balora_svd;
  launch<O>("svd", &KernelTable::svd, {{&O::a, x}}, {{&O::u, u}, {&O::s, s}, {&O::vt, vt}});
  record("svd", {a}, {u, s, vt},
         [u = Saved(u), s = Saved(s), vt = Saved(vt)](std::span<const Tensor> dy, GradSink& sink) {
           add_svd_gradient(u, s, vt, dy[0], dy[1], dy[2], sink);
         });
  return {u, s, vt};
}

Tensor singular_values(const Tensor& a) {
  check_matrix("singular_values", a);
  const int64_t m = a.dim(0), n = a.dim(1), k = std::min(m, n);
  const bool wanted = grad_wanted({a});
  const Tensor x = contiguous(a.detach());
  const Tensor u = wanted ? Tensor::empty(a.engine(), {m, k}, a.dtype()) : Tensor();
  Tensor s = Tensor::empty(a.engine(), {k}, accumulator_dtype(a.dtype()));
  const Tensor vt = wanted ? Tensor::empty(a.engine(), {k, n}, a.dtype()) : Tensor();
  using O = balora_svd;
  launch<O>("singular_values", &KernelTable::svd, {{&O::a, x}},
            {{&O::u, u}, {&O::s, s}, {&O::vt, vt}});
  record("singular_values", {a}, {s},
         [u = Saved(u), s = Saved(s), vt = Saved(vt)](std::span<const Tensor> dy, GradSink& sink) {
           add_svd_gradient(u, s, vt, Tensor(), dy[0], Tensor(), sink);
         });
  return s;
}

}  // namespace balora
