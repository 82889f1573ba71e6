// Weights that stay in blocks: any range of values is the same as in the whole, NF4's codes are the
// nearest ones, and double quantisation is undone within its step.
#include "io/encodings.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

using namespace balora;
using namespace balora::io;

namespace {

std::vector<float> decoded(const balora_encoding& encoding, const void* data, int64_t first,
                           int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  encoding.decode(&encoding, data, first, count, values.data());
  return values;
}

bool same_bits(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

// Every range that begins and ends around the borders of blocks, against the whole.
void check_ranges(const balora_encoding& encoding, const void* data, int64_t count) {
  const std::vector<float> whole = decoded(encoding, data, 0, count);
  const int64_t block = encoding.block;
  for (const int64_t first : {int64_t{0}, int64_t{1}, block - 1, block, block + 3, count - 1}) {
    for (const int64_t wanted : {int64_t{0}, int64_t{1}, block, 2 * block + 5, count}) {
      if (first < 0 || first >= count) continue;
      const int64_t n = std::min(wanted, count - first);
      const std::vector<float> part = decoded(encoding, data, first, n);
      INFO(encoding.name, " from ", first, ", ", n, " values");
      CHECK(std::equal(part.begin(), part.end(), whole.begin() + first, same_bits));
    }
  }
}

std::vector<float> normal(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> draw;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = draw(random);
  return values;
}

struct Nf4 {
  FourBitLayout layout;
  std::vector<std::byte> bytes;
  std::vector<float> absmax;

  Nf4(const std::vector<float>& values, int64_t block)
      : layout{.count = static_cast<int64_t>(values.size()), .block = block},
        bytes(static_cast<size_t>(layout.bytes())),
        absmax(static_cast<size_t>(layout.blocks())) {
    encode_nf4(values.data(), layout.count, block, 0, layout.blocks(),
               reinterpret_cast<uint8_t*>(bytes.data()), absmax.data());
    std::memcpy(bytes.data() + layout.absmax_at(), absmax.data(), absmax.size() * sizeof(float));
  }
};

}  // namespace

TEST_CASE("ranges of every type of GGUF files") {
  std::mt19937 random(1);
  for (uint32_t id = 0; id < 64; ++id) {
    const GgmlTypeInfo* const type = find_ggml_type(id);
    if (!type || !type->decoded) continue;
    std::vector<std::byte> bytes(static_cast<size_t>(4 * type->bytes));
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random() & 0x3f);
    check_ranges(*ggml_encoding(*type), bytes.data(), 4 * type->block);
  }
}

TEST_CASE("ranges of 4-bit and int8 weights") {
  for (const int64_t block : {2, 32, 64, 130}) {
    const Nf4 weight(normal(521, 2), block);
    check_ranges(*four_bit_encoding("NF4", weight.layout, nf4_code(), 0), weight.bytes.data(), 521);
  }
  std::vector<std::byte> bytes(static_cast<size_t>(int8_bytes(5, 37)));
  for (size_t i = 0; i < 5 * 37; ++i) bytes[i] = static_cast<std::byte>(i * 7);
  const std::vector<float> scales = {1, 0, 3, 0.5f, 127};
  std::memcpy(bytes.data() + int8_scales_at(5, 37), scales.data(), 5 * sizeof(float));
  const auto encoding = int8_encoding(5, 37);
  check_ranges(*encoding, bytes.data(), 5 * 37);
  const float expected = static_cast<float>(static_cast<int8_t>(4 * 37 * 7)) * 127.0f / 127.0f;
  CHECK(decoded(*encoding, bytes.data(), 4 * 37, 1)[0] == expected);
}

TEST_CASE("NF4 takes the nearest code") {
  const std::vector<float> values = normal(300, 3);
  const Nf4 weight(values, 64);
  const std::vector<float> found =
      decoded(*four_bit_encoding("NF4", weight.layout, nf4_code(), 0), weight.bytes.data(), 0, 300);
  for (size_t i = 0; i < values.size(); ++i) {
    const float scale = weight.absmax[i / 64];
    double nearest = INFINITY;
    for (const float code : nf4_code()) {
      nearest = std::min(nearest, std::abs(static_cast<double>(code * scale) - values[i]));
    }
    CHECK(std::abs(static_cast<double>(found[i]) - values[i]) <= nearest + 1e-6 * scale);
  }
}

TEST_CASE("double quantisation is undone within a step of its map") {
  const Nf4 weight(normal(64 * 300, 4), 64);
  const FourBitLayout layout{.count = 64 * 300, .block = 64, .nested_block = kNestedBlock};
  std::vector<std::byte> bytes(static_cast<size_t>(layout.bytes()));
  std::memcpy(bytes.data(), weight.bytes.data(), static_cast<size_t>(layout.packed_bytes()));
  std::vector<float> nested(static_cast<size_t>(layout.nested_blocks()));
  const float offset =
      encode_absmax(weight.absmax.data(), layout.blocks(),
                    reinterpret_cast<uint8_t*>(bytes.data() + layout.absmax_at()), nested.data());
  std::memcpy(bytes.data() + layout.nested_at(), nested.data(), nested.size() * sizeof(float));
  std::memcpy(bytes.data() + layout.map_at(), dynamic_map().data(), sizeof dynamic_map());
  const auto encoding = four_bit_encoding("NF4", layout, nf4_code(), offset);
  check_ranges(*encoding, bytes.data(), layout.count);
  const auto plain = four_bit_encoding("NF4", weight.layout, nf4_code(), 0);
  const std::vector<float> exact = decoded(*plain, weight.bytes.data(), 0, layout.count);
  const std::vector<float> found = decoded(*encoding, bytes.data(), 0, layout.count);
  for (size_t i = 0; i < exact.size(); ++i) {
    // Half of the map's widest step, of the largest difference from the mean.
    const float step = nested[i / 64 / kNestedBlock] * 0.0071f;
    CHECK(std::abs(found[i] - exact[i]) <= step + 1e-6f);
  }
}
