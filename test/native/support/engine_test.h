// A tensor of ones, and the failure of an engine's stream.
#pragma once
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/launch.h"

namespace balora::test {

inline Tensor ones(Engine& engine, const Shape& shape) {
  const std::vector<float> values(static_cast<size_t>(shape.numel()), 1.0f);
  return upload(engine, shape, DType::kF32, values.data());
}

// The code of the failure that a sync finds, else "none".
inline std::string failure_of(Engine& engine) {
  try {
    engine.stream().sync();
  } catch (const StreamError& error) {
    return error.failure_code();
  }
  return "none";
}

}  // namespace balora::test
