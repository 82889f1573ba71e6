// A frozen f32 weight as the packed right side of a product, in oneDNN's layout. Slot 0 of a
// (out,in) weight holds the layout for x W^T, slot 1 the one for dy W.
#pragma once
#include <cstdint>

#include "kernels/cpu/products/onednn.h"
#include "platform/platform.h"
#include "tensor/dtype.h"

namespace balora {

class PackedWeight {
 public:
  // The packed form of op(b), made on first use. Null where b is not frozen or not f32.
  static const PackedWeight* of(Context* ctx, const View& b, bool transposed);

  // C (m,n) = A (m,k) W + beta C, all in f32.
  void multiply(Context* ctx, int64_t m, const void* a, int64_t lda, void* c, int64_t ldc,
                float beta) const;  // beta 0 or 1

 private:
  PackedWeight(Context* ctx, const View& b, bool transposed);
  void multiply_rows(Context* ctx, MatmulSpec spec, int64_t first, int64_t rows,
                     MatmulArguments arguments) const;
  void multiply_apart(Context* ctx, MatmulSpec spec, MatmulArguments arguments) const;

  int64_t k_, n_;
  dnnl::memory::desc layout_;
  int64_t bytes_ = 0;
  platform::AlignedMemory data_;  // null: not supported on this CPU
};

}  // namespace balora
