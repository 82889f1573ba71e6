#include "runtime/blas_library.cuh"

#include <dlfcn.h>

#include <functional>
#include <stdexcept>
#include <string>

#include "runtime/common.cuh"

// A plug-in that brings its own cuBLAS (the emulated device) defines this; null: it has none.
extern "C" __attribute__((weak)) void* balora_cublas_symbol(const char* library, const char* name);

namespace balora::cuda {
namespace {

using namespace blas_api;

// Tries cuBLAS of the run-time library's CUDA first: the driver is new enough for it.
constexpr bool kBuiltBy12 = CUDART_VERSION / 1000 == 12;
constexpr const char* kNames[] = {kBuiltBy12 ? "libcublas.so.12" : "libcublas.so.13",
                                  kBuiltBy12 ? "libcublas.so.13" : "libcublas.so.12"};

std::string loader_words() {
  const char* words = dlerror();
  return words ? words : "no reason given";
}

using FindSymbol = std::function<void*(const char*)>;

FindSymbol open_library(const char* name) {
  if (balora_cublas_symbol && balora_cublas_symbol(name, "cublasCreate_v2")) {
    return [name](const char* symbol) { return balora_cublas_symbol(name, symbol); };
  }
  void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (!library) throw std::runtime_error(loader_words());
  return [library](const char* symbol) { return dlsym(library, symbol); };
}

template <typename Pointer>
void find(const FindSymbol& symbol, const char* name, Pointer& pointer) {
  pointer = reinterpret_cast<Pointer>(symbol(name));
  if (!pointer) {
    throw std::runtime_error(std::string("cuBLAS has no ") + name + " (" + loader_words() +
                             "); CUDA 12 or 13 is needed");
  }
}

Library load(const char* name) {
  const FindSymbol symbol = open_library(name);
  Library library;
#define CUBLAS_FUNCTION(result, name, arguments) find(symbol, #name, library.name);
#include "runtime/blas.def"
#undef CUBLAS_FUNCTION
  return library;
}

// One that loads may still be too new for the driver, which shows at its first handle.
void start(const Library& library) {
  cublasHandle_t handle = nullptr;
  const cublasStatus_t status = library.cublasCreate_v2(&handle);
  if (status == CUBLAS_STATUS_ALLOC_FAILED) throw OutOfMemory("cublasCreate");
  if (status != CUBLAS_STATUS_SUCCESS) {
    throw std::runtime_error(std::string("it does not start: ") +
                             library.cublasGetStatusString(status));
  }
  library.cublasDestroy_v2(handle);
}

Library first_that_starts() {
  std::string tried;
  for (const char* name : kNames) {
    try {
      const Library library = load(name);
      start(library);
      return library;
    } catch (const OutOfMemory&) {
      throw;
    } catch (const std::exception& failure) {
      tried += (tried.empty() ? "" : "; ") + std::string(name) + " (" + failure.what() + ")";
      cudaGetLastError();  // taken note of: a launch of this thread must not report it
    }
  }
  throw std::runtime_error(
      "cuBLAS was not found, tried " + tried +
      "; put its folder (of the CUDA toolkit, or nvidia/cublas/lib of a Python "
      "wheel) on LD_LIBRARY_PATH");
}

}  // namespace

const Library& blas_library() {
  static const Library library = first_that_starts();
  return library;
}

}  // namespace balora::cuda
