// Finding cuBLAS: by dlopen, which also searches LD_LIBRARY_PATH, the way to the copies that Python
// wheels bring along (nvidia/cublas/lib beside torch).
#pragma once
#include "runtime/blas_api.h"

namespace balora::cuda {

// The first that makes a handle for the current device; found once a process and kept. Throws with
// the names that were tried and what each failed with.
const blas_api::Library& blas_library();

}  // namespace balora::cuda
