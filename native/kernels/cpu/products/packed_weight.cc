// packed_weight.h. oneDNN compiles a primitive for each number of rows (about half a millisecond),
// so rows are taken as a multiple of kRowBucket and a rest: batches of all lengths
// then share a few primitives.
#include "kernels/cpu/products/packed_weight.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "kernels/cpu/elementwise/convert.h"
#include "kernels/cpu/runtime/scratch.h"
#include "kernels/cpu/runtime/stop.h"
#include "kernels/shared/rows.h"
#include "tensor/errors.h"

namespace balora {
namespace {

constexpr int64_t kRowBucket = 64;
constexpr int64_t kApartElements = int64_t{1} << 20;  // of A or C at a time in multiply_apart
constexpr int64_t kTypicalRows = 1024;  // the layout is chosen for products of this size
// Rows between two looks at whether anybody still wants the product. Sums run over k alone, so that
// the bits are those of one product of all rows.
constexpr int64_t kRowsAtOnce = 8192;
static_assert(kRowsAtOnce % kRowBucket == 0);

}  // namespace

const PackedWeight* PackedWeight::of(Context* ctx, const View& b, bool transposed) {
  if (!b.slots || !view_contiguous(b) || view_numel(b) == 0) return nullptr;
  if (b.shape[transposed ? 0 : 1] == 1) return nullptr;  // see gemm.cc on strided vectors
  if (b.dtype != BALORA_F32) return nullptr;
  balora_slot& slot = b.slots[transposed ? 0 : 1];
  if (!slot.data) {
    auto packed = std::unique_ptr<PackedWeight>(new PackedWeight(ctx, b, transposed));
    slot.bytes = packed->bytes_;
    if (ctx->account) ctx->account(ctx, packed->bytes_);
    slot.data = packed.release();
    slot.destroy = [](void* data) { delete static_cast<PackedWeight*>(data); };
  }
  const auto* packed = static_cast<const PackedWeight*>(slot.data);
  const int64_t k = b.shape[transposed ? 1 : 0], n = b.shape[transposed ? 0 : 1];
  // The slots belong to the storage; another view of it (a slice, a reshape)
  // is multiplied unpacked.
  const bool same = packed->k_ == k && packed->n_ == n;
  return same && packed->data_ ? packed : nullptr;
}

PackedWeight::PackedWeight(Context* ctx, const View& b, bool transposed)
    : k_(b.shape[transposed ? 1 : 0]), n_(b.shape[transposed ? 0 : 1]) {
  CpuState& state = CpuState::of(ctx);
  MatmulSpec spec;
  spec.m = kTypicalRows, spec.n = n_, spec.k = k_;
  spec.a_row = k_, spec.a_col = 1, spec.c_row = n_;
  spec.a_dtype = spec.b_dtype = spec.c_dtype = BALORA_F32;
  spec.packed_b = 1;
  spec.threads = ctx->num_threads;
  const OneDnnThreads threads(ctx->num_threads);
  const auto matmul = state.matmul(spec);
  if (!matmul) return;
  layout_ = matmul->b_layout();
  data_ = platform::allocate_aligned(layout_.get_size());
  bytes_ = static_cast<int64_t>(platform::aligned_bytes(layout_.get_size()));
  const dnnl::memory::dims strides =
      transposed ? dnnl::memory::dims{1, k_} : dnnl::memory::dims{n_, 1};
  dnnl::memory from({{k_, n_}, onednn_dtype(BALORA_F32), strides}, state.engine(), b.data);
  dnnl::memory to(layout_, state.engine(), data_.get());
  dnnl::stream stream = state.stream();
  dnnl::reorder(from, to).execute(stream, from, to);
}

void PackedWeight::multiply(Context* ctx, int64_t m, const void* a, int64_t lda, void* c,
                            int64_t ldc, float beta) const {
  MatmulSpec spec;
  spec.n = n_, spec.k = k_;
  spec.a_row = lda, spec.a_col = 1, spec.c_row = ldc;
  spec.a_dtype = spec.b_dtype = spec.c_dtype = BALORA_F32;
  spec.packed_b = 1, spec.beta = beta;
  spec.threads = ctx->num_threads;
  const OneDnnThreads threads(ctx->num_threads);
  const int64_t body = m / kRowBucket * kRowBucket;
  const MatmulArguments arguments = {.a = a, .b = data_.get(), .c = c};
  for (int64_t first = 0; first < body && !is_stopped(ctx); first += kRowsAtOnce) {
    multiply_rows(ctx, spec, first, std::min(kRowsAtOnce, body - first), arguments);
  }
  if (body < m) multiply_rows(ctx, spec, body, m - body, arguments);
}

void PackedWeight::multiply_rows(Context* ctx, MatmulSpec spec, int64_t first, int64_t rows,
                                 MatmulArguments x) const {
  spec.m = rows;
  x.a = offset_by(x.a, first * spec.a_row, BALORA_F32);
  x.c = offset_by(x.c, first * spec.c_row, BALORA_F32);
  CpuState& state = CpuState::of(ctx);
  const auto matmul = state.matmul(spec, &layout_);
  if (!matmul) throw UnsupportedError("oneDNN refuses a product with a packed weight");
  const bool dense = spec.a_row == k_ && spec.c_row == n_;
  if (matmul->is_reference() && !dense) return multiply_apart(ctx, spec, x);
  const Scratch<char> scratch(ctx, static_cast<int64_t>(matmul->scratch_bytes()));
  x.scratch = scratch.data();
  matmul->execute(state.stream(), x);
}

// oneDNN 3.1 (Ubuntu 24.04's) multiplies by a packed weight in its plain loops unless the rows of A
// and of C are one after the other: blocks of rows are copied to and from where they are.
void PackedWeight::multiply_apart(Context* ctx, MatmulSpec spec, MatmulArguments x) const {
  const int64_t lda = std::exchange(spec.a_row, k_), ldc = std::exchange(spec.c_row, n_);
  const int64_t fitting = kApartElements / std::max(k_, n_) / kRowBucket * kRowBucket;
  const int64_t block = std::min(std::max(fitting, kRowBucket), spec.m);
  const Scratch<char> dense_a(ctx, block * k_ * static_cast<int64_t>(sizeof(float)));
  const Scratch<char> dense_c(ctx, block * n_ * static_cast<int64_t>(sizeof(float)));
  void* const a = dense_a.data();
  void* const c = dense_c.data();
  for (int64_t first = 0; first < spec.m; first += block) {
    const int64_t rows = std::min(block, spec.m - first);
    void* const to = offset_by(x.c, first * ldc, BALORA_F32);
    convert_rows(ctx, {offset_by(x.a, first * lda, BALORA_F32), BALORA_F32, lda},
                 {a, BALORA_F32, k_}, rows, k_);
    if (spec.beta != 0) convert_rows(ctx, {to, BALORA_F32, ldc}, {c, BALORA_F32, n_}, rows, n_);
    MatmulArguments part = x;
    part.a = a, part.c = c;
    multiply_rows(ctx, spec, 0, rows, part);
    convert_rows(ctx, {c, BALORA_F32, n_}, {to, BALORA_F32, ldc}, rows, n_);
  }
}

}  // namespace balora
