// The SVD regularizer where the Gram form is not allowed: the head is trained (G changes every step
// and dW is wanted) or its logits are soft-capped (not linear). Tiles Z_t of Z = cap(H W^T) are
// made twice. Once they are summed to the smaller Gram matrix, over tiles of tokens, or of rows
// where these outnumber the vocabulary:
//   K = sum Z_t Z_t^T,  or  K = sum Z_t^T Z_t
// And once they are replaced by their gradients, from which those of the operands follow:
//   dZ_t = U diag(weights) U^T Z_t + shift Z_t, times 1 - (Z_t / cap)^2
//   dH += dZ_t W_t
//   dW_t = dZ_t^T H
#include <algorithm>
#include <cmath>

#include "kernels/cpu/head/head_passes.h"
#include "kernels/cpu/head/head_products.h"
#include "kernels/cpu/head/svd_ratio.h"
#include "kernels/cpu/products/gemm.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/workspace.h"
#include "kernels/shared/svd_ratio_tiles.h"

namespace balora {
namespace {

constexpr int64_t kDefaultTileBytes = int64_t{16} << 20;

template <typename A>
class Logits {
 public:
  Logits(Context* ctx, const balora_svd_ratio_tiles& o)
      : ctx_(ctx),
        h_(o.h),
        w_(o.w),
        softcap_(o.softcap),
        channels_(o.h->shape[1]),
        tiles_(o, sizeof(A) + sizeof(double), kDefaultTileBytes),
        logits_(workspace<A>(ctx, tiles_.tile_size())) {}

  // The smaller Gram matrix of the logits.
  Matrix gram() {
    const int64_t order = tiles_.order();
    Matrix sum(order, order);
    double* const to = sum.values.data();
    tiles_.each([&](const LogitsTile& tile) {
      make(tile);
      const MatrixRef z{logits_, kDtype, tile.tokens, 1};
      if (tiles_.by_rows()) {
        symmetric_product_f64(ctx_, order, tile.rows, z.transposed(), z, to, true);
      } else {
        symmetric_product_f64(ctx_, order, tile.tokens, z, z.transposed(), to, true);
      }
    });
    return sum;
  }

  void gradient(const Matrix& vectors, const SvdRatio& ratio, const View* dh, const View* dw) {
    const int64_t count = h_->shape[0] * channels_;
    A* sum = dh ? workspace<A>(ctx_, count) : nullptr;
    if (sum) std::fill_n(sum, count, A(0));
    tiles_.each([&](const LogitsTile& tile) {
      make(tile);
      replace_by_gradient(tile, vectors, ratio);
      if (dh) {
        gemm(ctx_, {tile.rows, channels_, tile.tokens}, {logits_, kDtype, tile.tokens},
             {rows_of(w_, tile.token), w_->dtype, channels_},
             {sum + tile.row * channels_, kDtype, channels_}, {1, 1});
      }
      if (dw) {
        gemm(ctx_, {tile.tokens, channels_, tile.rows}, {logits_, kDtype, tile.tokens, true},
             {rows_of(h_, tile.row), h_->dtype, channels_},
             {rows_of(dw, tile.token), dw->dtype, channels_}, {1, tile.row > 0 ? 1.0 : 0.0});
      }
    });
    if (!dh) return;
    dispatch_float(dh->dtype, [&]<typename T>() {
      T* out = data_of<T>(dh);
      for (int64_t i = 0; i < count; ++i) out[i] = store<T>(static_cast<Acc<T>>(sum[i]));
    });
  }

 private:
  static constexpr int32_t kDtype = kDtypeOfAcc<A>;

  void make(const LogitsTile& tile) {
    gemm(ctx_, {tile.rows, tile.tokens, channels_}, {rows_of(h_, tile.row), h_->dtype, channels_},
         {rows_of(w_, tile.token), w_->dtype, channels_, true}, {logits_, kDtype, tile.tokens});
    if (!(softcap_ > 0)) return;
    const A cap = static_cast<A>(softcap_);
    parallel_for(ctx_, tile.rows * tile.tokens, 1 << 14, [&](int64_t begin, int64_t end) {
      head::cap_row(logits_ + begin, end - begin, cap);
    });
  }

  void replace_by_gradient(const LogitsTile& tile, const Matrix& vectors, const SvdRatio& ratio) {
    const MatrixRef logits{logits_, kDtype, tile.tokens, 1};
    Matrix z = widened(logits, tile.rows, tile.tokens);
    // From the right the roles of rows and columns swap:
    //   dZ^T = V diag(weights) V^T Z^T + shift Z^T
    z = tiles_.by_rows() ? transposed(ratio_gradient(ctx_, vectors, ratio, transposed(z)))
                         : ratio_gradient(ctx_, vectors, ratio, z);
    const double inverse = softcap_ > 0 ? 1 / softcap_ : 0;
    parallel_for(ctx_, tile.rows * tile.tokens, 1 << 14, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const double capped = static_cast<double>(logits_[i]) * inverse;
        logits_[i] = static_cast<A>(z.values[static_cast<size_t>(i)] * (1 - capped * capped));
      }
    });
  }

  Context* ctx_;
  const View *h_, *w_;
  double softcap_;
  int64_t channels_;
  LogitsTiles tiles_;
  A* logits_;
};

template <typename A>
double run(Context* ctx, const balora_svd_ratio_tiles& o) {
  const bool nuclear = o.nuclear != 0;
  Logits<A> logits(ctx, o);
  const Matrix gram = logits.gram();
  double norm2 = 0;  // the sum of the squares of all logits
  for (int64_t i = 0; i < gram.rows; ++i) norm2 += gram(i, i);
  const RitzPairs pairs = ratio_eigenpairs(ctx, gram, o.k, nuclear);
  const SvdRatio ratio = svd_ratio(pairs.values, norm2, o.k, nuclear);
  if (o.dh || o.dw) logits.gradient(pairs.vectors, ratio, o.dh, o.dw);
  return ratio.value;
}

}  // namespace

int32_t svd_ratio_tiles_kernel(Context* ctx, const balora_svd_ratio_tiles& o) {
  *data_of<double>(o.value) = o.h->dtype == BALORA_F64 ? run<double>(ctx, o) : run<float>(ctx, o);
  return 0;
}

}  // namespace balora
