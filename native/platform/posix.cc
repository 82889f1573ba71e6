// The parts of platform.h that Linux and macOS have in common.
#include <dlfcn.h>

#include <cstdlib>
#include <new>

#include "platform/platform.h"

namespace balora::platform {

void FreeAligned::operator()(void* data) const {
  std::free(data);
}

AlignedMemory allocate_aligned(uint64_t bytes) {
  const uint64_t size = aligned_bytes(bytes);
  require_memory(size);
  AlignedMemory memory(std::aligned_alloc(kAlignment, size));
  if (!memory) throw std::bad_alloc();
  return memory;
}

// The handle is never closed: a library's threads may run until the process ends.
void* open_library(const std::string& path, std::string* why) {
  dlerror();
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library) return library;
  const char* reason = dlerror();
  *why = reason ? reason : "no reason given";
  return nullptr;
}

void* symbol(void* library, const char* name) {
  return dlsym(library, name);
}

std::string library_of(const void* function) {
  Dl_info info;
  return dladdr(function, &info) && info.dli_fname ? info.dli_fname : "";
}

}  // namespace balora::platform
