// The types, values and functions of blas.def, and the table of pointers that open_library() fills.
// Enumerations have C's underlying type; the names are cuBLAS's own.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>

namespace balora::cuda::blas_api {

using cublasHandle_t = struct cublasContext*;

#define CUBLAS_ENUM(type) enum type : int {};
#define CUBLAS_VALUE(type, name, value) constexpr type name = static_cast<type>(value);
#include "runtime/blas.def"
#undef CUBLAS_ENUM
#undef CUBLAS_VALUE

// A pointer type for each function, and the table of them.
#define CUBLAS_FUNCTION(result, name, arguments) using name##_pointer = result(*) arguments;
#include "runtime/blas.def"
#undef CUBLAS_FUNCTION

struct Library {
#define CUBLAS_FUNCTION(result, name, arguments) name##_pointer name = nullptr;
#include "runtime/blas.def"
#undef CUBLAS_FUNCTION
};

}  // namespace balora::cuda::blas_api
