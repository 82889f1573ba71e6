// The lists of implementation.h together.
#include "kernels/cpu/runtime/implementation.h"

namespace balora {

void (*on_choice)(const void* list, size_t index) = nullptr;

#define LIST(name) ImplementationList name##_implementations();
#include "kernels/cpu/implementations.def"

std::vector<ImplementationList> cpu_implementations() {
  return {
#define LIST(name) name##_implementations(),
#include "kernels/cpu/implementations.def"
  };
}

}  // namespace balora
