// The SVD regularizer where the Gram form is not allowed: the head is trained, or its logits are
// soft-capped. The algebra, and the two times that each tile of logits is made, are those of
// kernels/cpu/head/svd_ratio.cc.
//
// 2 min(N,V)^2 max(N,V) f64 flops for the Gram matrix, 8 N V C flops for the products.
#include "elementwise/device_math.cuh"
#include "head/svd_ratio.cuh"
#include "kernels/shared/activations.h"
#include "kernels/shared/svd_ratio_tiles.h"

namespace balora::cuda {
namespace {

constexpr const char* kRow = "svd_ratio_tiles";
constexpr int64_t kDefaultTileBytes = int64_t{128} << 20;

template <typename A>
__global__ void cap_logits(A* z, int64_t count, A cap) {
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    z[i] = soft_capped<DeviceMath>(z[i], cap);
  }
}

// z = dz (1 - (z / cap)^2)
template <typename A>
__global__ void replace_logits(A* z, const double* dz, int64_t count, double inverse_cap) {
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    const double capped = static_cast<double>(z[i]) * inverse_cap;
    z[i] = static_cast<A>(dz[i] * (1 - capped * capped));
  }
}

template <typename A>
class Logits {
 public:
  Logits(Scratch& scratch, const balora_svd_ratio_tiles& o)
      : scratch_(scratch),
        ctx_(scratch.ctx()),
        h_(o.h),
        w_(o.w),
        softcap_(o.softcap),
        channels_(o.h->shape[1]),
        tiles_(o, sizeof(A) + sizeof(double), kDefaultTileBytes),
        logits_(workspace<A>(ctx_, tiles_.tile_size())) {}

  // The smaller Gram matrix of the logits.
  Dense gram() {
    const int64_t order = tiles_.order();
    const bool by_rows = tiles_.by_rows();
    Dense sum = zeros(scratch_, order, order);
    tiles_.each([&](const LogitsTile& tile) {
      const Dense z = make(tile);
      const GemmShape shape = {order, order, by_rows ? tile.rows : tile.tokens};
      multiply(ctx_, shape, 1, {z.data(), z.cols, by_rows}, {z.data(), z.cols, !by_rows}, 1,
               sum.data(), order);
    });
    symmetrise(ctx_, sum);
    return sum;
  }

  void gradient(const Dense& vectors, const SvdRatio& ratio, const View* dh, const View* dw) {
    const int64_t rows = h_->shape[0];
    View sum{};
    if (dh) {
      sum = *dh;
      sum.dtype = kLogits;
      sum.data = dh->dtype == kLogits ? dh->data : workspace<A>(ctx_, rows * channels_);
    }
    bool first = true;
    tiles_.each([&](const LogitsTile& tile) {
      replace_by_gradient(tile, vectors, ratio);
      if (dh) {
        const bool fresh = tiles_.by_rows() || first;
        gemm(ctx_, {tile.rows, channels_, tile.tokens}, 1, {logits_, kLogits, tile.tokens},
             rows_of(*w_, tile.token), fresh ? 0 : 1,
             {offset_by(sum.data, tile.row * channels_, kLogits), kLogits, channels_});
      }
      if (dw) {
        gemm(ctx_, {tile.tokens, channels_, tile.rows}, 1, {logits_, kLogits, tile.tokens, true},
             rows_of(*h_, tile.row), tile.row > 0 ? 1 : 0,
             {offset_by(dw->data, tile.token * channels_, dw->dtype), dw->dtype, channels_});
      }
      first = false;
    });
    if (!dh || sum.data == dh->data) return;
    convert_matrix(ctx_, rows, channels_, {sum.data, kLogits, channels_},
                   {dh->data, dh->dtype, channels_});
  }

 private:
  static constexpr int32_t kLogits = kDtypeOfAcc<A>;

  GemmOperand rows_of(const View& view, int64_t first, bool transposed = false) const {
    return {offset_by(view.data, first * channels_, view.dtype), view.dtype, channels_, transposed};
  }

  // Into logits_; returns their f64 image.
  Dense make(const LogitsTile& tile) {
    const int64_t count = tile.rows * tile.tokens;
    gemm(ctx_, {tile.rows, tile.tokens, channels_}, 1, rows_of(*h_, tile.row),
         rows_of(*w_, tile.token, true), 0, {logits_, kLogits, tile.tokens});
    if (softcap_ > 0) launch(ctx_, kRow, elements(count), cap_logits<A>, logits_, count, softcap_);
    return widened(scratch_, logits_, kLogits, tile.rows, tile.tokens);
  }

  void replace_by_gradient(const LogitsTile& tile, const Dense& vectors, const SvdRatio& ratio) {
    Dense z = make(tile);
    if (tiles_.by_rows()) {
      // From the right the roles of rows and columns swap:
      //   dZ^T = V diag(weights) V^T Z^T + shift Z^T
      z = transposed(scratch_, ratio_gradient(scratch_, vectors, ratio, transposed(scratch_, z)));
    } else {
      z = ratio_gradient(scratch_, vectors, ratio, z);
    }
    launch(ctx_, kRow, elements(z.size()), replace_logits<A>, logits_, z.data(), z.size(),
           softcap_ > 0 ? 1 / softcap_ : 0.0);
  }

  Scratch& scratch_;
  Context* ctx_;
  const View *h_, *w_;
  double softcap_;
  int64_t channels_;
  LogitsTiles tiles_;
  A* logits_;
};

template <typename A>
void run(Context* ctx, const balora_svd_ratio_tiles& o) {
  const bool nuclear = o.nuclear != 0;
  Scratch scratch(ctx);
  Logits<A> logits(scratch, o);
  const Dense gram = logits.gram();
  const Dense norm2 = trace_of(scratch, gram);  // the sum of the squares of all logits
  const int64_t wanted = nuclear ? gram.rows : std::min(o.k, gram.rows);
  const Eigenpairs pairs = leading_pairs(scratch, gram, wanted, kRow);
  const SvdRatio ratio =
      svd_ratio(scratch, pairs.values, norm2, o.k, nuclear, data_of<double>(o.value));
  if (o.dh || o.dw) logits.gradient(pairs.vectors, ratio, o.dh, o.dw);
}

}  // namespace

int32_t svd_ratio_tiles_kernel(Context* ctx, const balora_svd_ratio_tiles& o) {
  o.h->dtype == BALORA_F64 ? run<double>(ctx, o) : run<float>(ctx, o);
  return 0;
}

}  // namespace balora::cuda
