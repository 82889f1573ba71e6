// oneDNN behind one door: an engine and stream per balora stream, and its matmul primitives cached
// by everything that shapes their code (making one costs about a millisecond). Used by the engine
// thread only, except Matmul::execute, which any thread may call with its own scratch.
#pragma once
#include <array>
#include <cstdint>
#include <list>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>

#include "kernels/cpu/runtime/stream_state.h"
#include "kernels/kernel_table.h"

namespace balora {

// C (batch,m,n) = alpha * A (batch,m,k) B (batch,k,n) + beta * C. Strides in elements. All fields
// are part of the cache key, so the struct has no padding and no field without effect.
struct MatmulSpec {
  int64_t batch = 1, m = 0, n = 0, k = 0;
  int64_t a_batch = 0, a_row = 0, a_col = 0;
  int64_t b_batch = 0, b_row = 0, b_col = 0;
  int64_t c_batch = 0, c_row = 0;
  int64_t threads = 1;
  int32_t a_dtype = 0, b_dtype = 0, c_dtype = 0;
  int32_t packed_b =
      0;  // B is packed, in a layout that k, n and the types determine (b_* strides unused)
  float alpha = 1, beta = 0;
  bool operator==(const MatmulSpec&) const = default;
};
static_assert(sizeof(MatmulSpec) == 13 * 8 + 6 * 4, "hashed bytewise: no padding");

struct MatmulArguments {
  const void* a = nullptr;
  const void* b = nullptr;
  void* c = nullptr;
  void* scratch = nullptr;  // Matmul::scratch_bytes()
};

class Matmul {
 public:
  // packed_b: B's layout, or null to let oneDNN choose one (b_layout() returns it). Without
  // spec.packed_b, unused. Throws dnnl::error with dnnl_unimplemented where this
  // CPU has no such product.
  Matmul(const dnnl::engine& engine, const MatmulSpec& spec, const dnnl::memory::desc* packed_b);
  void execute(const dnnl::stream& stream, const MatmulArguments& arguments) const;
  uint64_t scratch_bytes() const { return scratch_.get_size(); }
  const dnnl::memory::desc& b_layout() const { return b_; }
  // oneDNN found nothing but its plain loops, which are slower by a factor of hundreds.
  bool is_reference() const { return reference_; }

 private:
  dnnl::engine engine_;
  dnnl::memory::desc a_, b_, c_, scratch_;
  dnnl::matmul primitive_;
  bool reference_ = false;
};

// The state of a CPU stream: oneDNN's engine and stream, and a cache of its primitives, of which
// the least recently used goes first.
class CpuState final : public StreamState {
 public:
  CpuState();
  static CpuState& of(Context* ctx);

  const dnnl::engine& engine() const { return engine_; }
  const dnnl::stream& stream() const { return stream_; }

  // The cached primitive, made on first use; null where oneDNN refuses the types on this CPU.
  std::shared_ptr<const Matmul> matmul(const MatmulSpec& spec,
                                       const dnnl::memory::desc* packed_b = nullptr);
  // How many primitives are kept.
  size_t primitives() const { return cache_.size(); }

 private:
  struct Hash {
    size_t operator()(const MatmulSpec& spec) const;
  };
  struct Entry {
    std::shared_ptr<const Matmul> matmul;
    std::list<MatmulSpec>::iterator age;
  };
  dnnl::engine engine_;
  dnnl::stream stream_;
  std::unordered_map<MatmulSpec, Entry, Hash> cache_;
  std::list<MatmulSpec> ages_;  // most recently used first
};

dnnl::memory::data_type onednn_dtype(int32_t dtype);

// oneDNN splits work over omp_get_max_threads(): set it to the stream's count for the
// life of this object.
class OneDnnThreads {
 public:
  explicit OneDnnThreads(int threads);
  ~OneDnnThreads();
  OneDnnThreads(const OneDnnThreads&) = delete;
  OneDnnThreads& operator=(const OneDnnThreads&) = delete;

 private:
  int saved_ = 0;
};

}  // namespace balora
