// The failure that a kernel or a device reported by its text, with the code of its cause.
#pragma once
#include <string>

#include "kernels/shared/messages.h"
#include "tensor/errors.h"

namespace balora {

// A kernel has no exceptions, so its causes are recognised by their texts: a lack of memory by its
// beginning, an input that is not finite by its end, behind the names of devices and ops.
inline NativeError kernel_failure(const char* text, const char* fallback) {
  const std::string message = text[0] ? text : fallback;
  if (message.ends_with(messages::matrix_not_finite())) return NotFiniteError(message);
  const bool memory = message.starts_with("out of memory");
  return NativeError(message, memory ? "ERR_OUT_OF_MEMORY" : "ERR_NATIVE");
}

}  // namespace balora
