// The encoders against bytes from the gguf package, and by what is decoded again.
#include "io/quantize.h"

#include <doctest/doctest.h>

#include <cmath>
#include <random>

#include "io/dequantize.h"
#include "io/fixtures.h"
#include "io/safetensors.h"

using namespace balora;
using namespace balora::io;
using balora::io::test::fixture;

namespace {

std::vector<std::byte> encoded(const GgmlTypeInfo& type, const std::vector<float>& x) {
  const auto blocks = static_cast<int64_t>(x.size()) / type.block;
  std::vector<std::byte> bytes(static_cast<size_t>(blocks * type.bytes));
  find_block_encoder(static_cast<GgmlType>(type.id))(x.data(), blocks, bytes.data());
  return bytes;
}

std::vector<float> decoded(const GgmlTypeInfo& type, const std::vector<std::byte>& bytes) {
  const auto blocks = static_cast<int64_t>(bytes.size()) / type.bytes;
  std::vector<float> x(static_cast<size_t>(blocks * type.block));
  find_block_decoder(static_cast<GgmlType>(type.id))(bytes.data(), blocks, x.data());
  return x;
}

std::vector<float> round_trip(const GgmlTypeInfo& type, const std::vector<float>& x) {
  return decoded(type, encoded(type, x));
}

std::vector<float> normal(size_t count, float deviation) {
  std::mt19937 bits(7);
  std::normal_distribution<float> draw(0.0f, deviation);
  std::vector<float> x(count);
  for (float& value : x) value = draw(bits);
  return x;
}

// The root of the mean square of the errors over that of the values.
double relative_error(const std::vector<float>& x, const std::vector<float>& y) {
  double errors = 0, squares = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    errors += std::pow(static_cast<double>(x[i]) - y[i], 2);
    squares += std::pow(static_cast<double>(x[i]), 2);
  }
  return std::sqrt(errors / squares);
}

const char* const kNames[] = {"F32", "F16", "BF16", "Q8_0", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"};

}  // namespace

TEST_CASE("quantize: the bytes are those of the gguf package") {
  const auto file = SafetensorsFile::open(fixture("quant/gguf_blocks.safetensors"));
  int cases = 0;
  for (const SafetensorsEntry& entry : file->header().entries) {
    const std::string prefix = "quantize_";
    const size_t slash = entry.name.find("/raw");
    if (entry.name.rfind(prefix, 0) != 0 || slash == std::string::npos) continue;
    const std::string name = entry.name.substr(0, slash);
    const GgmlTypeInfo* type = find_ggml_type(
        std::string_view(name).substr(prefix.size(), name.rfind('_') - prefix.size()));
    REQUIRE_MESSAGE(type, name);
    if (!find_block_encoder(static_cast<GgmlType>(type->id))) continue;
    const SafetensorsEntry* x = file->find(name + "/x");
    REQUIRE(x);
    std::vector<float> values(file->bytes(*x).size() / sizeof(float));
    std::memcpy(values.data(), file->bytes(*x).data(), file->bytes(*x).size());
    const auto want = file->bytes(entry);
    const std::vector<std::byte> got = encoded(*type, values);
    CHECK_MESSAGE(std::equal(got.begin(), got.end(), want.begin(), want.end()), name);
    ++cases;
  }
  CHECK(cases == 15);  // F16, BF16, Q8_0, Q5_0, Q5_1 in three shapes each
}

TEST_CASE("quantize: the errors on normal values are those of a search, not of the plain range") {
  const std::vector<float> x = normal(256 * 64, 0.02f);
  const auto error = [&x](const char* name) {
    const GgmlTypeInfo& type = *find_ggml_type(std::string_view(name));
    return relative_error(x, round_trip(type, x));
  };
  CHECK(error("F32") == 0);
  CHECK(error("Q4_K") < 0.0745);
  CHECK(error("Q5_K") < 0.0375);
  CHECK(error("Q6_K") < 0.0190);
}

TEST_CASE("quantize: any finite values give finite ones, and zeros zeros") {
  for (const char* name : kNames) {
    CAPTURE(name);
    const GgmlTypeInfo& type = *find_ggml_type(std::string_view(name));
    const std::vector<float> zeros(512, 0.0f);
    CHECK(round_trip(type, zeros) == zeros);
    for (const float value : {1.0f, -1.0f, 1e-30f, -3e4f}) {
      std::vector<float> x(512, value);
      CHECK(relative_error(x, round_trip(type, x)) < (std::fabs(value) < 1e-20f ? 1.1 : 0.05));
      x.assign(512, 0.0f);
      x[3] = value;
      for (const float y : round_trip(type, x)) CHECK(std::isfinite(y));
    }
  }
}

TEST_CASE("quantize: what is not encoded has no encoder") {
  // doctest 2.4.9, Debian 12's, cannot show a pointer to a function.
  const auto encodes = [](GgmlType type) { return find_block_encoder(type) != nullptr; };
  CHECK_FALSE(encodes(GgmlType::kQ4_1));
  CHECK_FALSE(encodes(GgmlType::kIQ4_XS));
  CHECK(encoded_ggml_types() == "F32, F16, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, BF16");
}
