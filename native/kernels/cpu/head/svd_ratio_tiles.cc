// The SVD regularizer where the Gram form is not allowed: the head is trained (G changes every step
// and dW is wanted) or its logits are soft-capped (not linear). Tiles of Z = cap(H W^T) are made
// twice: once to sum the smaller Gram matrix, K = sum Z_t Z_t^T over vocabulary tiles, or sum Z_t^T
// Z_t over row tiles when rows outnumber the vocabulary, and once to turn each tile into dZ_t = U
// diag(weights) U^T Z_t + shift Z_t, then dH += dU_t W_t, dW_t = dU_t^T H.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/head/head_products.h"
#include "kernels/cpu/head/svd_ratio.h"
#include "kernels/cpu/products/gemm.h"
#include "kernels/cpu/runtime/cpu_kernels.h"
#include "kernels/cpu/runtime/dispatch.h"
#include "kernels/cpu/runtime/parallel.h"
#include "kernels/cpu/runtime/workspace.h"

namespace balora {
namespace {

constexpr int64_t kDefaultTileBytes = int64_t{16} << 20;

// A tile is all rows of some tokens of the vocabulary, or the whole vocabulary of some rows.
struct Tile {
  int64_t row, rows, token, tokens;
};

template <typename A>
class Tiles {
 public:
  Tiles(Context* ctx, const balora_svd_ratio_tiles& o)
      : ctx_(ctx), h_(o.h), w_(o.w), softcap_(o.softcap) {
    rows_ = h_->shape[0];
    tokens_ = w_->shape[0];
    channels_ = h_->shape[1];
    by_rows_ = rows_ > tokens_;
    const int64_t extent = by_rows_ ? rows_ : tokens_;
    const int64_t bytes = o.chunk_bytes > 0 ? o.chunk_bytes : kDefaultTileBytes;
    // The tile in the logits' type and its f64 image.
    step_ = bytes / (order() * static_cast<int64_t>(sizeof(A) + sizeof(double)));
    step_ = std::clamp<int64_t>(step_, 1, extent);
    logits_ = workspace<A>(ctx_, order() * step_);
  }

  int64_t order() const { return by_rows_ ? tokens_ : rows_; }

  // The smaller Gram matrix of the logits.
  Matrix gram() {
    Matrix sum(order(), order());
    each_tile([&](const Tile& tile) {
      make_logits(tile);
      const MatrixRef z{logits_, kDtype, tile.tokens, 1};
      if (by_rows_) {
        symmetric_product_f64(ctx_, tokens_, tile.rows, z.transposed(), z, sum.values.data(), true);
      } else {
        symmetric_product_f64(ctx_, rows_, tile.tokens, z, z.transposed(), sum.values.data(), true);
      }
    });
    return sum;
  }

  void gradient(const Matrix& vectors, const SvdRatio& ratio, const View* dh, const View* dw) {
    A* sum = dh ? workspace<A>(ctx_, rows_ * channels_) : nullptr;
    if (sum) std::fill_n(sum, rows_ * channels_, A(0));
    each_tile([&](const Tile& tile) {
      make_logits(tile);
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
      for (int64_t i = 0; i < rows_ * channels_; ++i)
        out[i] = store<T>(static_cast<Acc<T>>(sum[i]));
    });
  }

 private:
  static constexpr int32_t kDtype = kDtypeOfAcc<A>;

  template <typename Body>
  void each_tile(const Body& body) {
    const int64_t extent = by_rows_ ? rows_ : tokens_;
    for (int64_t first = 0; first < extent; first += step_) {
      const int64_t count = std::min(step_, extent - first);
      body(by_rows_ ? Tile{first, count, 0, tokens_} : Tile{0, rows_, first, count});
    }
  }

  void make_logits(const Tile& tile) {
    gemm(ctx_, {tile.rows, tile.tokens, channels_}, {rows_of(h_, tile.row), h_->dtype, channels_},
         {rows_of(w_, tile.token), w_->dtype, channels_, true}, {logits_, kDtype, tile.tokens});
    if (!(softcap_ > 0)) return;
    const A cap = static_cast<A>(softcap_);
    parallel_for(ctx_, tile.rows * tile.tokens, 1 << 14, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) logits_[i] = cap * std::tanh(logits_[i] / cap);
    });
  }

  void replace_by_gradient(const Tile& tile, const Matrix& vectors, const SvdRatio& ratio) {
    const MatrixRef logits{logits_, kDtype, tile.tokens, 1};
    Matrix z = widened(logits, tile.rows, tile.tokens);
    // From the right the roles of rows and columns swap:
    //   dZ^T = V diag(weights) V^T Z^T + shift Z^T
    z = by_rows_ ? transposed(ratio_gradient(ctx_, vectors, ratio, transposed(z)))
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
  int64_t rows_ = 0, tokens_ = 0, channels_ = 0, step_ = 0;
  bool by_rows_ = false;
  A* logits_ = nullptr;
};

template <typename A>
double run(Context* ctx, const balora_svd_ratio_tiles& o) {
  const bool nuclear = o.nuclear != 0;
  Tiles<A> tiles(ctx, o);
  const Matrix gram = tiles.gram();
  double norm2 = 0;  // the sum of the squares of all logits
  for (int64_t i = 0; i < gram.rows; ++i) norm2 += gram(i, i);
  const RitzPairs pairs = ratio_eigenpairs(ctx, gram, o.k, nuclear);
  const SvdRatio ratio = svd_ratio(pairs.values, norm2, o.k, nuclear);
  if (o.dh || o.dw) tiles.gradient(pairs.vectors, ratio, o.dh, o.dw);
  return ratio.value;
}

}  // namespace

int32_t svd_ratio_tiles_kernel(Context* ctx, const balora_svd_ratio_tiles& o) {
  *data_of<double>(o.value) = o.h->dtype == BALORA_F64 ? run<double>(ctx, o) : run<float>(ctx, o);
  return 0;
}

}  // namespace balora
