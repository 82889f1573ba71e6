#include "blas_library.cuh"

#include <dlfcn.h>

#include <functional>
#include <stdexcept>
#include <string>

// A plug-in that brings its own cuBLAS (the emulated device) defines this; null: it has none.
extern "C" __attribute__((weak)) void* balora_cublas_symbol(const char* name);

namespace balora::cuda {
namespace {

constexpr const char* kNames[] = {"libcublas.so.13", "libcublas.so.12"};

std::string loader_words() {
  const char* words = dlerror();
  return words ? words : "no reason given";
}

void* open_shared_library() {
  std::string tried;
  for (const char* name : kNames) {
    if (void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return library;
    tried += (tried.empty() ? "" : "; ") + std::string(name) + " (" + loader_words() + ")";
  }
  throw std::runtime_error(
      "cuBLAS was not found, tried " + tried +
      "; put its folder (of the CUDA toolkit, or nvidia/cublas/lib of a Python "
      "wheel) on LD_LIBRARY_PATH");
}

using FindSymbol = std::function<void*(const char*)>;

FindSymbol open_library() {
  if (balora_cublas_symbol && balora_cublas_symbol("cublasCreate_v2")) return balora_cublas_symbol;
  void* library = open_shared_library();
  return [library](const char* name) { return dlsym(library, name); };
}

template <typename Pointer>
void find(const FindSymbol& symbol, const char* name, Pointer& pointer) {
  pointer = reinterpret_cast<Pointer>(symbol(name));
  if (!pointer) {
    throw std::runtime_error(std::string("cuBLAS has no ") + name + " (" + loader_words() +
                             "); CUDA 12 or 13 is needed");
  }
}

blas_api::Library load() {
  const FindSymbol symbol = open_library();
  blas_api::Library library;
#define CUBLAS_FUNCTION(result, name, arguments) find(symbol, #name, library.name);
#include "blas.def"
#undef CUBLAS_FUNCTION
  return library;
}

}  // namespace

const blas_api::Library& blas_library() {
  static const blas_api::Library library = load();
  return library;
}

}  // namespace balora::cuda
