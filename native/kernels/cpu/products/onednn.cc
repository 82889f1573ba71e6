#include "kernels/cpu/products/onednn.h"

#include <new>
#include <string_view>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "tensor/errors.h"

#if DNNL_VERSION_MAJOR < 2 || (DNNL_VERSION_MAJOR == 2 && DNNL_VERSION_MINOR < 5)
#error "balora needs oneDNN 2.5 or newer (Debian, Ubuntu: libdnnl-dev)"
#endif

namespace balora {
namespace {

// ---- The calls in which oneDNN 2.5 to 2.7 differ from oneDNN 3 ----------------------------------
// Debian 12 has 2.6, Ubuntu 22.04 has 2.5.

dnnl::matmul::primitive_desc matmul_description(const dnnl::engine& engine,
                                                const dnnl::memory::desc& a,
                                                const dnnl::memory::desc& b,
                                                const dnnl::memory::desc& c,
                                                const dnnl::primitive_attr& attributes) {
#if DNNL_VERSION_MAJOR >= 3
  return {engine, a, b, c, attributes};
#else
  return {dnnl::matmul::desc(a, b, c), attributes, engine};
#endif
}

// The product is multiplied by a constant before what follows in `post`.
void append_scale(dnnl::post_ops& post, float factor) {
#if DNNL_VERSION_MAJOR >= 3
  post.append_eltwise(dnnl::algorithm::eltwise_linear, factor, 0);
#else
  post.append_eltwise(1, dnnl::algorithm::eltwise_linear, factor, 0);
#endif
}

// ---- Products -----------------------------------------------------------------------------------

// Bounds the memory of generated code: a primitive's takes some 100 KB.
constexpr size_t kMaxPrimitives = 1024;

using Dims = dnnl::memory::dims;
using Desc = dnnl::memory::desc;

Desc matrix(const MatmulSpec& spec, Dims dims, int32_t dtype, Dims strides) {
  if (spec.batch == 1) {
    dims.erase(dims.begin());
    strides.erase(strides.begin());
  }
  return Desc(dims, onednn_dtype(dtype), strides);
}

Desc any_layout(const MatmulSpec& spec, int32_t dtype) {
  return Desc({spec.k, spec.n}, onednn_dtype(dtype), dnnl::memory::format_tag::any);
}

// oneDNN reads each of its variables where it first needs it. Once a process, a small product has
// it read them all on the thread that makes the first state: JavaScript's, which is the one that
// may write to the environment (platform/environment.h).
void read_onednn_environment(const CpuState& state) {
  constexpr int64_t kSide = 16;
  MatmulSpec spec;
  spec.m = spec.n = spec.k = kSide;
  spec.a_row = spec.b_row = spec.c_row = kSide;
  spec.a_col = spec.b_col = 1;
  spec.beta = 0;
  const OneDnnThreads threads(1);
  const Matmul product(state.engine(), spec, nullptr);
  std::vector<float> values(3 * kSide * kSide);
  std::vector<char> scratch(product.scratch_bytes() + 64);
  const auto address = reinterpret_cast<uintptr_t>(scratch.data());
  product.execute(state.stream(), {.a = values.data(),
                                   .b = values.data() + kSide * kSide,
                                   .c = values.data() + 2 * kSide * kSide,
                                   .scratch = scratch.data() + (64 - address % 64) % 64});
}

}  // namespace

dnnl::memory::data_type onednn_dtype(int32_t dtype) {
  switch (dtype) {
    case BALORA_F32:
      return dnnl::memory::data_type::f32;
    case BALORA_BF16:
      return dnnl::memory::data_type::bf16;
    default:
      throw UnsupportedError("oneDNN products take f32 and bf16");
  }
}

Matmul::Matmul(const dnnl::engine& engine, const MatmulSpec& s, const Desc* packed_b)
    : engine_(engine) {
  // A repeated matrix is a batch dimension of 1, which oneDNN broadcasts.
  a_ = matrix(s, {s.a_batch ? s.batch : 1, s.m, s.k}, s.a_dtype, {s.a_batch, s.a_row, s.a_col});
  if (s.packed_b) {
    b_ = packed_b ? *packed_b : any_layout(s, s.b_dtype);
  } else {
    b_ = matrix(s, {s.b_batch ? s.batch : 1, s.k, s.n}, s.b_dtype, {s.b_batch, s.b_row, s.b_col});
  }
  c_ = matrix(s, {s.batch, s.m, s.n}, s.c_dtype, {s.c_batch, s.c_row, 1});
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  dnnl::post_ops post;
  if (s.alpha != 1) append_scale(post, s.alpha);
  if (s.beta != 0) post.append_sum(s.beta);
  attr.set_post_ops(post);
  const dnnl::matmul::primitive_desc pd = matmul_description(engine, a_, b_, c_, attr);
  b_ = pd.weights_desc();
  scratch_ = pd.scratchpad_desc();
  primitive_ = dnnl::matmul(pd);
  reference_ = std::string_view(pd.impl_info_str()).starts_with("ref");
}

void Matmul::execute(const dnnl::stream& stream, const MatmulArguments& x) const {
  const auto bind = [&](const Desc& desc, const void* data) {
    return dnnl::memory(desc, engine_, const_cast<void*>(data));
  };
  const dnnl::memory a = bind(a_, x.a), b = bind(b_, x.b), c = bind(c_, x.c);
  const dnnl::memory scratch = bind(scratch_, x.scratch);
  const std::array<dnnl_exec_arg_t, 4> arguments = {{{DNNL_ARG_SRC, a.get()},
                                                     {DNNL_ARG_WEIGHTS, b.get()},
                                                     {DNNL_ARG_DST, c.get()},
                                                     {DNNL_ARG_SCRATCHPAD, scratch.get()}}};
  const dnnl_status_t status = dnnl_primitive_execute(
      primitive_.get(), stream.get(), static_cast<int>(arguments.size()), arguments.data());
  if (status == dnnl_out_of_memory) throw std::bad_alloc();
  dnnl::error::wrap_c_api(status, "matrix product");
}

CpuState::CpuState() : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
  static const bool read = (read_onednn_environment(*this), true);
  static_cast<void>(read);
}

CpuState& CpuState::of(Context* ctx) {
  return static_cast<CpuState&>(*StreamState::of(ctx));
}

size_t CpuState::Hash::operator()(const MatmulSpec& spec) const {
  return std::hash<std::string_view>()(
      std::string_view(reinterpret_cast<const char*>(&spec), sizeof spec));
}

std::shared_ptr<const Matmul> CpuState::matmul(const MatmulSpec& spec, const Desc* packed_b) {
  const auto found = cache_.find(spec);
  if (found != cache_.end()) {
    ages_.splice(ages_.begin(), ages_, found->second.age);
    return found->second.matmul;
  }
  std::shared_ptr<const Matmul> made;
  try {
    const OneDnnThreads threads(spec.threads);
    made = std::make_shared<const Matmul>(engine_, spec, packed_b);
  } catch (const dnnl::error& error) {
    if (error.status == dnnl_out_of_memory) throw std::bad_alloc();
    if (error.status != dnnl_unimplemented) throw;
  }
  if (cache_.size() >= kMaxPrimitives) {
    cache_.erase(ages_.back());
    ages_.pop_back();
  }
  ages_.push_front(spec);
  cache_[spec] = {made, ages_.begin()};
  return made;
}

#if defined(_OPENMP)
OneDnnThreads::OneDnnThreads(int threads) : saved_(omp_get_max_threads()) {
  omp_set_num_threads(threads);
}
OneDnnThreads::~OneDnnThreads() {
  omp_set_num_threads(saved_);
}
#else
OneDnnThreads::OneDnnThreads(int) {}
OneDnnThreads::~OneDnnThreads() = default;
#endif

}  // namespace balora
