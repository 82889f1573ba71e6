// Tensors from nothing: constants, counters and random numbers. Random values depend on (seed,
// stream, index) only.
#include <cmath>

#include "engine/launch.h"
#include "ops/ops.h"

namespace balora {
namespace {

uint64_t checked_seed(const char* op, const char* name, int64_t value) {
  if (value < 0) throw ArgumentError(concat(op, ": ", name, " must be >= 0, got ", value));
  return static_cast<uint64_t>(value);
}

void check_float_type(const char* op, DType dtype) {
  if (is_float(dtype)) return;
  throw ArgumentError(concat(op, ": dtype must be a float type, got ", dtype_name(dtype)));
}

}  // namespace

Tensor full(Engine& engine, const Shape& shape, double value, DType dtype) {
  Tensor y = Tensor::empty(engine, shape, dtype);
  using O = balora_fill;
  launch<O>("full", &KernelTable::fill, {}, {{&O::y, y}}, {.value = value});
  return y;
}

Tensor arange(Engine& engine, double start, double stop, double step, DType dtype) {
  if (!(step != 0) || !std::isfinite(start) || !std::isfinite(stop) || !std::isfinite(step)) {
    throw ArgumentError(concat("arange: start, stop and step must be finite and step not 0, got ",
                               start, ", ", stop, ", ", step));
  }
  const double count = std::max(0.0, std::ceil((stop - start) / step));
  if (!(count <= static_cast<double>(kMaxElements))) {
    throw ArgumentError(concat("arange: from ", start, " to ", stop, " by ", step,
                               " are more than 2^53 - 1 values"));
  }
  Tensor y = Tensor::empty(engine, {static_cast<int64_t>(count)}, dtype);
  using O = balora_arange;
  launch<O>("arange", &KernelTable::arange, {}, {{&O::y, y}}, {.start = start, .step = step});
  return y;
}

Tensor random_uniform(Engine& engine, const Shape& shape, double low, double high, int64_t seed,
                      int64_t stream, DType dtype) {
  check_float_type("rand", dtype);
  if (!(low <= high)) {
    throw ArgumentError(concat("rand: low must not be above high, got ", low, " and ", high));
  }
  const uint64_t s = checked_seed("rand", "seed", seed), t = checked_seed("rand", "stream", stream);
  Tensor y = Tensor::empty(engine, shape, dtype);
  using O = balora_random_uniform;
  launch<O>("rand", &KernelTable::random_uniform, {}, {{&O::y, y}},
            {.seed = s, .stream = t, .low = low, .high = high});
  return y;
}

Tensor random_normal(Engine& engine, const Shape& shape, double mean, double deviation,
                     int64_t seed, int64_t stream, DType dtype) {
  check_float_type("randn", dtype);
  if (!(deviation >= 0)) {
    throw ArgumentError(concat("randn: the standard deviation must be >= 0, got ", deviation));
  }
  const uint64_t s = checked_seed("randn", "seed", seed),
                 t = checked_seed("randn", "stream", stream);
  Tensor y = Tensor::empty(engine, shape, dtype);
  using O = balora_random_normal;
  launch<O>("randn", &KernelTable::random_normal, {}, {{&O::y, y}},
            {.seed = s, .stream = t, .mean = mean, .deviation = deviation});
  return y;
}

Tensor random_words(Engine& engine, int64_t count, int64_t seed, int64_t stream) {
  const uint64_t s = checked_seed("random_words", "seed", seed);
  const uint64_t t = checked_seed("random_words", "stream", stream);
  Tensor y = Tensor::empty(engine, {count}, DType::kI64);
  using O = balora_random_words;
  launch<O>("random_words", &KernelTable::random_words, {}, {{&O::y, y}}, {.seed = s, .stream = t});
  return y;
}

}  // namespace balora
