// Thousands of seeded truncations and bit flips: every damaged file is read or refused by name,
// never a crash. Buffers are heap blocks of the exact size, so the address sanitizer sees a read
// one byte too far.
#include <doctest/doctest.h>

#include <memory>
#include <random>

#include "io/consume.h"
#include "io/fixtures.h"
#include "tensor/errors.h"

using namespace balora;
using namespace balora::io;
using namespace balora::io::test;

namespace {

constexpr int kCases = 3000;  // of each file

struct Tally {
  int read = 0, refused = 0;
};

// `focus`: the part of the file that holds the header, which most flips should hit.
Tally fuzz(const std::vector<std::byte>& original, size_t focus, uint64_t seed,
           void (*consume)(std::span<const std::byte>)) {
  std::mt19937_64 random(seed);
  Tally tally;
  for (int i = 0; i < kCases; ++i) {
    size_t size = original.size();
    if (i % 3 == 0) size = random() % (i % 2 ? original.size() : focus);
    const auto buffer = std::make_unique<std::byte[]>(size);
    std::memcpy(buffer.get(), original.data(), size);
    const int flips = i % 3 == 0 ? 0 : 1 + static_cast<int>(random() % 8);
    for (int k = 0; k < flips; ++k) {
      const size_t range = random() % 4 ? std::min(focus, size) : size;
      buffer[random() % range] ^= static_cast<std::byte>(1u << (random() % 8));
    }
    try {
      consume({buffer.get(), size});
      ++tally.read;
    } catch (const FormatError& error) {
      REQUIRE(error.offset() >= 0);
      REQUIRE(static_cast<size_t>(error.offset()) <= size);
      ++tally.refused;
    } catch (const UnsupportedError&) {
      ++tally.refused;
    }
  }
  return tally;
}

}  // namespace

TEST_CASE("fuzz: damaged GGUF files are read or refused") {
  for (const char* name : {"align64", "metadata_arrays", "kquants", "tiny_llama"}) {
    CAPTURE(name);
    const auto bytes = read_bytes(fixture(std::string("quant/") + name + ".gguf"));
    const size_t focus = parse_gguf("x", bytes).data_begin;
    const Tally tally = fuzz(bytes, focus, 20260711, consume_gguf);
    CHECK(tally.refused > kCases / 2);
    CHECK(tally.read + tally.refused == kCases);
  }
}

TEST_CASE("fuzz: damaged safetensors files and indices are read or refused") {
  for (const char* name : {"align64", "kquants", "tiny_llama"}) {
    CAPTURE(name);
    const auto bytes =
        read_bytes(fixture(std::string("quant/") + name + ".gguf.values.safetensors"));
    uint64_t focus = 0;
    std::memcpy(&focus, bytes.data(), sizeof focus);
    const Tally tally = fuzz(bytes, focus + sizeof focus, 20260712, consume_safetensors);
    CHECK(tally.refused > kCases / 2);
  }
  const auto index = test::to_bytes(
      R"({"metadata":{"total_size":12},"weight_map":{"model.a\u00e9":"m-1.safetensors","b":"m-2"}})");
  CHECK(fuzz(index, index.size(), 20260713, consume_index).refused > kCases / 2);
}
