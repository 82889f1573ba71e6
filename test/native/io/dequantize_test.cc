// The decoders against values from the gguf package, bit for bit; conversion between element types.
#include "io/dequantize.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "io/fixtures.h"
#include "io/gguf.h"
#include "io/safetensors.h"
#include "tensor/errors.h"

using namespace balora;
using namespace balora::io;
using balora::io::test::fixture;

namespace {

std::vector<float> floats(const SafetensorsFile& file, const std::string& name) {
  const SafetensorsEntry* entry = file.find(name);
  REQUIRE_MESSAGE(entry, name);
  REQUIRE(entry->dtype == DType::kF32);
  const auto bytes = file.bytes(*entry);
  std::vector<float> values(bytes.size() / sizeof(float));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

// Position of the first difference in bits (two NaNs are the same), or -1.
int64_t first_difference(const std::vector<float>& got, const std::vector<float>& want) {
  if (got.size() != want.size()) return 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const bool both_nan = std::isnan(got[i]) && std::isnan(want[i]);
    if (!both_nan && std::bit_cast<uint32_t>(got[i]) != std::bit_cast<uint32_t>(want[i])) {
      return static_cast<int64_t>(i);
    }
  }
  return -1;
}

const GgmlTypeInfo* type_named(const std::string& name) {
  for (uint32_t id = 0; id < 64; ++id) {
    const GgmlTypeInfo* type = find_ggml_type(id);
    if (type && name == type->name) return type;
  }
  return nullptr;
}

}  // namespace

TEST_CASE("dequantize: every block type equals the reference bit for bit") {
  const auto file = SafetensorsFile::open(fixture("quant/gguf_blocks.safetensors"));
  int cases = 0;
  std::vector<std::string> types;
  for (const SafetensorsEntry& entry : file->header().entries) {
    const size_t slash = entry.name.find("/raw");
    if (slash == std::string::npos) continue;
    const std::string name = entry.name.substr(0, slash);
    CAPTURE(name);
    std::string type_name = name.substr(0, name.rfind('_'));
    if (type_name.starts_with("quantize_")) type_name = type_name.substr(9);
    const GgmlTypeInfo* type = type_named(type_name);
    REQUIRE(type);
    const std::vector<float> want = floats(*file, name + "/f32");
    std::vector<float> got(want.size());
    // In two ranges, as threads would split it.
    const auto n = static_cast<int64_t>(got.size());
    const int64_t middle = n / type->block / 2 * type->block;
    dequantize(*type, file->bytes(entry).data(), middle, n, DType::kF32, got.data());
    dequantize(*type, file->bytes(entry).data(), 0, middle, DType::kF32, got.data());
    CHECK(first_difference(got, want) == -1);

    std::vector<bf16> rounded(want.size());
    dequantize(*type, file->bytes(entry).data(), 0, n, DType::kBF16, rounded.data());
    int64_t wrong = 0;
    for (size_t i = 0; i < want.size(); ++i) wrong += rounded[i].bits != to_bf16(want[i]).bits;
    CHECK(wrong == 0);
    types.push_back(type_name);
    ++cases;
  }
  std::sort(types.begin(), types.end());
  types.erase(std::unique(types.begin(), types.end()), types.end());
  CHECK(types.size() == 14);
  CHECK(cases >= 42);
}

TEST_CASE("gguf: every tensor of the reference files has its name, shape and values") {
  for (const char* name : {"align64", "metadata_arrays", "kquants", "tiny_llama"}) {
    CAPTURE(name);
    const auto file = GgufFile::open(fixture(std::string("quant/") + name + ".gguf"));
    const auto values =
        SafetensorsFile::open(fixture(std::string("quant/") + name + ".gguf.values.safetensors"));
    CHECK(file->header().tensors.size() == values->header().entries.size());
    for (const SafetensorsEntry& entry : values->header().entries) {
      CAPTURE(entry.name);
      const GgufTensor* tensor = file->find(entry.name);
      REQUIRE(tensor);
      CHECK(tensor->shape == entry.shape);
      const std::vector<float> want = floats(*values, entry.name);
      std::vector<float> got(want.size());
      dequantize(*tensor->type, file->bytes(*tensor).data(), 0, static_cast<int64_t>(got.size()),
                 DType::kF32, got.data());
      CHECK(first_difference(got, want) == -1);
    }
  }
}

TEST_CASE("dequantize: what is not decoded is named") {
  const std::byte block[256] = {};
  float out[256];
  CHECK_THROWS_WITH_AS(dequantize(*type_named("IQ2_XXS"), block, 0, 256, DType::kF32, out),
                       doctest::Contains("IQ2_XXS"), UnsupportedError);
  CHECK_THROWS_AS(dequantize(*type_named("Q8_0"), block, 0, 32, DType::kI32, out),
                  UnsupportedError);
  CHECK_THROWS_AS(dequantize(*type_named("Q8_0"), block, 0, 33, DType::kF32, out), ArgumentError);
}

TEST_CASE("convert: between float types, from unaligned bytes") {
  const std::vector<double> values = {0.0, -0.0, 1.0, -1.5, 65504.0, 1e-7, 3.14159265358979};
  const auto n = static_cast<int64_t>(values.size());
  const DType types[] = {DType::kF32, DType::kBF16, DType::kF16, DType::kF64};
  for (const DType from : types) {
    for (const DType to : types) {
      CAPTURE(dtype_name(from));
      CAPTURE(dtype_name(to));
      std::vector<double> source(values.size()), direct(values.size()), target(values.size()),
          back(values.size()), direct_back(values.size());
      convert(DType::kF64, reinterpret_cast<const std::byte*>(values.data()), 0, n, from,
              source.data());
      std::vector<std::byte> shifted(values.size() * 8 + 1);
      std::memcpy(shifted.data() + 1, source.data(), static_cast<size_t>(n * dtype_size(from)));
      convert(from, shifted.data() + 1, 3, n, to, target.data());
      convert(from, shifted.data() + 1, 0, 3, to, target.data());
      convert(to, reinterpret_cast<const std::byte*>(target.data()), 0, n, DType::kF64,
              back.data());
      convert(from, reinterpret_cast<const std::byte*>(source.data()), 0, n, DType::kF64,
              direct.data());
      for (size_t i = 0; i < values.size(); ++i) {
        // Halves of 65504 and 1e-7 round; what `from` holds exactly must survive a
        // type at least as wide.
        if (dtype_size(to) > dtype_size(from) || from == to) CHECK(back[i] == direct[i]);
        if (i < 4) CHECK(back[i] == values[i]);
      }
      CHECK(std::signbit(back[1]));
    }
  }
  int32_t out[1];
  CHECK_THROWS_AS(convert(DType::kF32, reinterpret_cast<const std::byte*>(values.data()), 0, 1,
                          DType::kI32, out),
                  UnsupportedError);
}

TEST_CASE("find_non_finite: names the first bad element of each float type") {
  const float f32[] = {1, 2, std::numeric_limits<float>::quiet_NaN(), INFINITY};
  CHECK(find_non_finite(DType::kF32, f32, 4) == 2);
  CHECK(find_non_finite(DType::kF32, f32, 2) == -1);
  const bf16 b[] = {to_bf16(1), to_bf16(-INFINITY)};
  CHECK(find_non_finite(DType::kBF16, b, 2) == 1);
  const f16 h[] = {to_f16(NAN)};
  CHECK(find_non_finite(DType::kF16, h, 1) == 0);
  const int64_t i[] = {-1};
  CHECK(find_non_finite(DType::kI64, i, 1) == -1);
}
