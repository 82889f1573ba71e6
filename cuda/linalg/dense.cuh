// Dense f64 matrices on the device for the decompositions: storage, conversion, products. It is the
// device's side of kernels/cpu/linalg/dense.h. Only host_values() waits for the device.
#pragma once
#include <map>
#include <utility>
#include <vector>

#include "runtime/blas.cuh"

namespace balora::cuda {

// Scratch memory of one row that is given back and taken again while the row runs: the engine
// releases a workspace only when the row returns, which an iteration cannot wait for. Work on the
// stream runs in order, so a buffer may have a new owner as soon as its last use is enqueued.
class Scratch {
 public:
  explicit Scratch(Context* ctx) : ctx_(ctx) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  Context* ctx() const { return ctx_; }

  // At least `bytes`, aligned to 64; *size is what give() wants back.
  void* take(int64_t bytes, int64_t* size) {
    const auto found = free_.lower_bound(bytes);
    if (found != free_.end() && found->first <= 2 * bytes + 4096) {
      void* data = found->second;
      *size = found->first;
      free_.erase(found);
      return data;
    }
    *size = (std::max<int64_t>(bytes, 1) + 63) / 64 * 64;
    return workspace<unsigned char>(ctx_, *size);
  }
  void give(void* data, int64_t size) { free_.emplace(size, data); }

 private:
  Context* ctx_;
  std::multimap<int64_t, void*> free_;
};

// Elements of T on the device that go back to the scratch with this object.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(Scratch& scratch, int64_t count) : scratch_(&scratch) {
    data_ = static_cast<T*>(scratch.take(count * static_cast<int64_t>(sizeof(T)), &size_));
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer() {
    if (data_) scratch_->give(data_, size_);
  }
  T* data() const { return data_; }

 private:
  void swap(Buffer& other) {
    std::swap(scratch_, other.scratch_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  Scratch* scratch_ = nullptr;
  T* data_ = nullptr;
  int64_t size_ = 0;
};

inline void clear_flags(Context* ctx, int32_t* flags, int64_t count) {
  const size_t bytes = static_cast<size_t>(count) * sizeof *flags;
  check_stream(ctx, cudaMemsetAsync(flags, 0, bytes, stream_of(ctx)), "clear_flags");
}

// Row-major (rows,cols), without gaps.
struct Dense {
  int64_t rows = 0, cols = 0;
  Buffer<double> values;

  Dense() = default;
  Dense(Scratch& scratch, int64_t r, int64_t c) : rows(r), cols(c), values(scratch, r * c) {}
  double* data() const { return values.data(); }
  int64_t size() const { return rows * cols; }
};

Dense widened(Scratch& scratch, const void* data, int32_t dtype, int64_t rows, int64_t cols);
Dense widened(Scratch& scratch, const View& view);  // contiguous, (M,N) or (N) as (N,1)
// Rounds once; the view is contiguous.
void store_values(Context* ctx, const double* values, const View& view);
Dense zeros(Scratch& scratch, int64_t rows, int64_t cols);
Dense copied(Scratch& scratch, const Dense& a);
Dense transposed(Scratch& scratch, const Dense& a);
// a = (a + a^T) / 2
void symmetrise(Context* ctx, const Dense& a);

// C (m,n) = alpha op(A) op(B) + beta C with rows lda, ldb, ldc apart.
struct Factor {
  const double* data;
  int64_t stride;
  bool transposed = false;
};
void multiply(Context* ctx, const GemmShape& shape, double alpha, const Factor& a, const Factor& b,
              double beta, double* c, int64_t ldc);
Dense product(Scratch& scratch, const Dense& a, const Dense& b);     // A B
Dense product_tn(Scratch& scratch, const Dense& a, const Dense& b);  // A^T B
Dense product_nt(Scratch& scratch, const Dense& a, const Dense& b);  // A B^T

// One power of two a matrix: `up` brings its largest magnitude into [1, 2), `down` takes it back;
// zero leaves 1. A matrix with NaN or infinity: `up` is NaN.
struct Scale {
  double up, down;
};
__device__ inline Scale scale_for(double largest) {
  if (!(largest - largest == 0)) return {largest - largest, 1};
  const int exponent = largest > 0 ? max(-1000, min(1000, ilogb(largest))) : 0;
  return {ldexp(1.0, -exponent), ldexp(1.0, exponent)};
}
Buffer<Scale> scale_of(Scratch& scratch, const double* values, int64_t count);

// Waits for the device.
std::vector<double> host_values(Context* ctx, const double* values, int64_t count);

}  // namespace balora::cuda
