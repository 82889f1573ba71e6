// The function that libFuzzer calls. A fuzzer defines consume(); the errors for bad files are fine,
// and anything else ends the process.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "io/consume.h"
#include "tensor/errors.h"

namespace balora::io::test {

void consume(std::span<const std::byte> bytes);

}  // namespace balora::io::test

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    balora::io::test::consume({reinterpret_cast<const std::byte*>(data), size});
  } catch (const balora::FormatError&) {
  } catch (const balora::UnsupportedError&) {
  }
  return 0;
}
