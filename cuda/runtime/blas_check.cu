// Holds blas.def to the real cuBLAS headers where a build has them: every function must exist with
// exactly these arguments, every value must be equal. Where they are not, the build says so and
// nothing is compiled. (The emulated device has none: its run-time header is a stand-in.)
#include "runtime/blas_api.h"

#if defined(__CUDACC__) && __has_include(<cublas_v2.h>)
#include <cublas_v2.h>

namespace balora::cuda {
namespace {

template <typename Ours>
struct RealType {
  using type = Ours;
};
template <>
struct RealType<blas_api::cublasHandle_t> {
  using type = ::cublasHandle_t;
};
template <>
struct RealType<blas_api::cublasHandle_t*> {
  using type = ::cublasHandle_t*;
};
#define CUBLAS_ENUM(name)                                    \
  template <>                                                \
  struct RealType<blas_api::name> {                          \
    using type = ::name;                                     \
    static_assert(sizeof(::name) == sizeof(blas_api::name)); \
  };
#include "runtime/blas.def"
#undef CUBLAS_ENUM

template <typename Ours>
struct RealPointer;
template <typename Result, typename... Args>
struct RealPointer<Result (*)(Args...)> {
  using type = typename RealType<Result>::type (*)(typename RealType<Args>::type...);
};

// The cast picks the overload with these arguments, and fails to compile where there is none.
// (sizeof, so that nothing refers to cuBLAS when the plug-in is linked.)
#define CUBLAS_FUNCTION(result, name, arguments)                                          \
  static_assert(sizeof(static_cast<typename RealPointer<blas_api::name##_pointer>::type>( \
                    &::name)) == sizeof(void*));
#define CUBLAS_VALUE(type, name, value) static_assert(static_cast<int>(::name) == (value));
#include "runtime/blas.def"
#undef CUBLAS_FUNCTION
#undef CUBLAS_VALUE

}  // namespace
}  // namespace balora::cuda
#elif defined(__CUDACC__)
#pragma message( \
    "cublas_v2.h is not here: the prototypes in cuda/runtime/blas.def go unchecked in this build")
#endif
