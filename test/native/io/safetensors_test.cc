// The reader refuses every violation of the format with a FormatError that names the
// place and the field.
#include "io/safetensors.h"

#include <doctest/doctest.h>

#include "io/fixtures.h"
#include "tensor/errors.h"

using namespace balora;
using namespace balora::io;
using balora::io::test::to_bytes;

namespace {

std::vector<std::byte> file_with(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::string text(reinterpret_cast<const char*>(&length), sizeof length);
  return to_bytes(text + header + std::string(data_bytes, '\1'));
}

void check_refused(const std::vector<std::byte>& bytes, int64_t offset, const std::string& part) {
  CAPTURE(part);
  try {
    parse_safetensors("weights.safetensors", bytes);
    FAIL("accepted");
  } catch (const FormatError& error) {
    CHECK(error.path() == "weights.safetensors");
    CHECK(error.offset() == offset);
    CHECK_MESSAGE(std::string(error.what()).find(part) != std::string::npos, error.what());
  }
}

}  // namespace

TEST_CASE("safetensors: a file in the reference's layout is read") {
  const auto bytes = file_with(
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]},)"
      R"("a":{"dtype":"I64","shape":[],"data_offsets":[0,8]},"e":{"dtype":"F8_E4M3","shape":[0],)"
      R"("data_offsets":[20,20]}}   )",
      20);
  const SafetensorsHeader header = parse_safetensors("x", bytes);
  REQUIRE(header.entries.size() == 3);
  CHECK(header.metadata.at("format") == "pt");
  CHECK(header.entries[0].name == "a");
  CHECK(header.entries[0].shape.empty());
  CHECK(header.entries[1].dtype == DType::kBF16);
  CHECK(header.entries[1].shape == std::vector<int64_t>{2, 3});
  CHECK(header.entries[1].end == bytes.size());
  CHECK_FALSE(header.entries[2].dtype.has_value());
  CHECK(header.entries[2].dtype_name == "F8_E4M3");
}

TEST_CASE("safetensors: names may hold escapes and any Unicode") {
  const auto bytes = file_with(
      R"({"\u00e9\ud83d\ude80\"\\\n":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1);
  CHECK(parse_safetensors("x", bytes).entries[0].name == "\u00e9\U0001F680\"\\\n");
}

TEST_CASE("safetensors: violations are named") {
  const std::string a = R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  const auto key = int64_t{9}, after = key + static_cast<int64_t>(a.size());
  check_refused(to_bytes("1234567"), 0, "header length");
  check_refused(file_with("{" + a + "}", 7), key, "a.data_offsets ends at 8 of 7");
  check_refused(file_with("{" + a + "}", 9), after + 1 + 8, "1 bytes follow the last tensor");
  check_refused(file_with("{" + a + "," + a + "}", 8), after + 1, "a occurs twice");
  check_refused(file_with(" {" + a + "}", 8), 8, "must begin with '{'");
  check_refused(file_with("", 8), 8, "must begin with '{'");
  check_refused(file_with("{" + a + "} x", 8), after + 2, "unexpected text");
  check_refused(file_with("{" + a, 8), after, "ends where");
  check_refused(file_with("{\"\xff\":1}", 0), 10, "UTF-8");
  check_refused(file_with("{\"\xed\xa0\x80\":1}", 0), 10, "UTF-8");
  check_refused(file_with(R"({"\udc00":1})", 0), 16, "surrogate");
  const auto entry = [](const std::string& fields) {
    return file_with("{\"a\":{" + fields + "}}", 8);
  };
  check_refused(entry(R"("dtype":"F32","shape":[2],"data_offsets":[4,12])"), 9, "(a hole)");
  check_refused(entry(R"("dtype":"F32","shape":[3],"data_offsets":[0,8])"), 9, "need 12");
  check_refused(entry(R"("dtype":"F99","shape":[2],"data_offsets":[0,8])"), 14, "a.dtype \"F99\"");
  check_refused(entry(R"("dtype":"F32","shape":[2])"), 9, "a.data_offsets is missing");
  check_refused(entry(R"("dtype":"F32","shape":[2],"data_offsets":[0,8,8])"), 9, "[begin, end]");
  check_refused(entry(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])"), 9, "[begin, end]");
  check_refused(entry(R"("dtype":"F32","dtype":"F32")"), 28, "a.dtype occurs twice");
  check_refused(entry(R"("dtype":"F32","strides":[2])"), 28, "a.strides is not a field");
  check_refused(entry(R"("shape":[-1])"), 23, "a.shape[i] must be a non-negative integer");
  check_refused(entry(R"("shape":[2.0])"), 23, "non-negative integer");
  check_refused(entry(R"("shape":[02])"), 23, "non-negative integer");
  check_refused(entry(R"("shape":[9223372036854775808])"), 23, "exceeds 2^63 - 1");
  check_refused(entry(R"("dtype":"F4","shape":[1],"data_offsets":[0,8])"), 9, "whole bytes");
  check_refused(entry(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8])"), 9,
                "too many elements");
  check_refused(entry(R"("dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0])"), 9,
                "too many elements");
  check_refused(file_with(R"({"__metadata__":{"format":1}})", 0), 34, "must be a string");
  check_refused(file_with(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                          R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                          3),
                61, "tensors overlap");
}

TEST_CASE("safetensors: the header length is capped and checked before use") {
  for (const uint64_t length : {uint64_t{1} << 63, ~uint64_t{0}, uint64_t{100'000'001}}) {
    std::string text(reinterpret_cast<const char*>(&length), sizeof length);
    check_refused(to_bytes(text + "{}"), 0, "exceeds the cap");
  }
  const uint64_t length = 3;
  check_refused(to_bytes(std::string(reinterpret_cast<const char*>(&length), 8) + "{}"), 0,
                "only 2 follow");
}

TEST_CASE("safetensors: deep nesting is refused, not followed") {
  CHECK_THROWS_AS(parse_safetensors_index("i", "{\"x\":" + std::string(100'000, '[')), FormatError);
}

TEST_CASE("safetensors: the index of a sharded checkpoint") {
  const auto shards = parse_safetensors_index(
      "i", R"({"metadata":{"total_size":1.5e3,"x":[true,null,{"y":-1}]},)"
           R"("weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  CHECK(shards.size() == 2);
  CHECK(shards.at("b") == "two.safetensors");
  for (const char* text :
       {R"({})", R"({"weight_map":{}})", R"({"weight_map":[]})", R"({"weight_map":{"a":1}})",
        R"({"weight_map":{"a":"../b"}})", R"({"weight_map":{"a":"/etc/passwd"}})",
        R"({"weight_map":{"a":".."}})", R"({"weight_map":{"a":""}})",
        R"({"weight_map":{"a":"b\u0000c"}})", R"({"weight_map":{"a":"x","a":"y"}})",
        R"({"weight_map":{"a":"x"},"weight_map":{}})", R"({"weight_map":{"a":"x"}} 1)", R"(01)"}) {
    CAPTURE(text);
    CHECK_THROWS_AS(parse_safetensors_index("i", text), FormatError);
  }
}

TEST_CASE("safetensors: a missing, empty or special file is named") {
  test::TempFolder folder;
  CHECK_THROWS_AS(SafetensorsFile::open(folder.file("none")), FormatError);
  CHECK_THROWS_AS(SafetensorsFile::open(folder.path), FormatError);
  std::ofstream(folder.file("empty")).close();
  CHECK_THROWS_WITH_AS(SafetensorsFile::open(folder.file("empty")), doctest::Contains("is empty"),
                       FormatError);
}
