// The calls in which oneDNN 2.5 to 2.7 differ from oneDNN 3, so that no other file has to know
// which of them it is built with: Debian 12 has 2.6, Ubuntu 22.04 has 2.5.
#pragma once
#include <oneapi/dnnl/dnnl.hpp>

#if DNNL_VERSION_MAJOR < 2 || (DNNL_VERSION_MAJOR == 2 && DNNL_VERSION_MINOR < 5)
#error "balora needs oneDNN 2.5 or newer (Debian, Ubuntu: libdnnl-dev)"
#endif

namespace balora {

inline dnnl::matmul::primitive_desc matmul_description(const dnnl::engine& engine,
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
inline void append_scale(dnnl::post_ops& post, float factor) {
#if DNNL_VERSION_MAJOR >= 3
  post.append_eltwise(dnnl::algorithm::eltwise_linear, factor, 0);
#else
  post.append_eltwise(1, dnnl::algorithm::eltwise_linear, factor, 0);
#endif
}

}  // namespace balora
