// GGUF headers: version 2 and 3, metadata of every type, alignment, and each violation with its
// place and field.
#include "io/gguf.h"

#include <doctest/doctest.h>

#include <cstring>

#include "io/fixtures.h"
#include "tensor/errors.h"

using namespace balora;
using namespace balora::io;
using balora::io::test::fixture;
using balora::io::test::to_bytes;

namespace {

// Builds GGUF bytes field by field.
struct Builder {
  std::string text;
  template <typename T>
  Builder& put(T value) {
    text.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Builder& str(const std::string& s) {
    put<uint64_t>(s.size());
    text += s;
    return *this;
  }
  static Builder start(uint64_t tensors, uint64_t entries, uint32_t version = 3) {
    Builder b;
    b.text = "GGUF";
    b.put<uint32_t>(version).put<uint64_t>(tensors).put<uint64_t>(entries);
    return b;
  }
  Builder& tensor(const std::string& name, std::vector<uint64_t> ne, uint32_t type,
                  uint64_t offset) {
    str(name).put<uint32_t>(static_cast<uint32_t>(ne.size()));
    for (const uint64_t extent : ne) put<uint64_t>(extent);
    return put<uint32_t>(type).put<uint64_t>(offset);
  }
  std::vector<std::byte> with_data(size_t bytes, size_t alignment = 32) {
    text.resize((text.size() + alignment - 1) / alignment * alignment, '\0');
    return to_bytes(text + std::string(bytes, '\1'));
  }
  std::vector<std::byte> done() { return to_bytes(text); }
};

void check_refused(const std::vector<std::byte>& bytes, const std::string& part) {
  CAPTURE(part);
  try {
    parse_gguf("model.gguf", bytes);
    FAIL("accepted");
  } catch (const FormatError& error) {
    CHECK(error.path() == "model.gguf");
    CHECK(error.offset() >= 0);
    CHECK_MESSAGE(std::string(error.what()).find(part) != std::string::npos, error.what());
  }
}

const GgufValue& value_of(const GgufHeader& header, const std::string& key) {
  for (const auto& [name, value] : header.metadata) {
    if (name == key) return value;
  }
  FAIL(key);
  throw 0;
}

}  // namespace

TEST_CASE("gguf: metadata of every scalar and array type") {
  const auto file = GgufFile::open(fixture("quant/metadata_arrays.gguf"));
  const auto& header = file->header();
  CHECK(header.version == 3);
  CHECK(std::get<uint64_t>(value_of(header, "test.u64").value) == 9223372036854775815u);
  CHECK(std::get<int64_t>(value_of(header, "test.i64").value) == -4611686018427387904);
  CHECK(std::get<int64_t>(value_of(header, "test.i8").value) == -5);
  CHECK(std::get<double>(value_of(header, "test.f64").value) == 0.1);
  CHECK(std::get<bool>(value_of(header, "test.bool_true").value));
  CHECK(file->text(std::get<GgufText>(value_of(header, "test.empty").value)).empty());
  const auto& array = std::get<GgufArray>(value_of(header, "test.arr.u64").value);
  CHECK(array.element == GgufType::kU64);
  const auto numbers = file->numbers(array);
  REQUIRE(numbers.size() == 8 * array.count);
  uint64_t first = 0;
  std::memcpy(&first, numbers.data(), sizeof first);
  CHECK(first == UINT64_MAX);
  const auto& strings = std::get<GgufArray>(value_of(header, "test.arr.str").value);
  CHECK(strings.count == 4);
  CHECK(file->items("test.arr.str", strings).size() == 4);
}

TEST_CASE("gguf: texts and arrays stay in the file, however long they are") {
  constexpr uint64_t kCount = uint64_t{1} << 27;
  Builder b = Builder::start(0, 2);
  b.str("numbers").put<uint32_t>(9).put<uint32_t>(0).put<uint64_t>(kCount);
  b.text.append(kCount, '\7');
  b.str("text").put<uint32_t>(8).str(std::string(kCount, 'x'));
  const std::vector<std::byte> bytes = b.done();
  b.text.clear();
  const GgufHeader header = parse_gguf("x", bytes);
  CHECK(std::get<GgufArray>(value_of(header, "numbers").value).count == kCount);
  CHECK(std::get<GgufText>(value_of(header, "text").value).bytes == kCount);
  // Only the places are kept: the elements' own values took 64 bytes each.
  CHECK(sizeof(GgufValue) <= 40);
}

TEST_CASE("gguf: more items than any model has are refused, before they are read") {
  const auto many = [](uint32_t element, uint64_t count, uint64_t each) {
    Builder b = Builder::start(0, 1).str("k").put<uint32_t>(9).put<uint32_t>(element);
    b.put<uint64_t>(count);
    b.text.append(count * each, '\0');
    return b.done();
  };
  check_refused(many(8, kMaxGgufItems + 1, 8), "k.length: 4194305 strings or arrays, at most");
  check_refused(many(9, kMaxGgufItems + 1, 12), "k.length: 4194305 strings or arrays, at most");
  Builder entries = Builder::start(0, kMaxGgufEntries + 1);
  entries.text.append(13 * (kMaxGgufEntries + 1), '\0');
  check_refused(entries.done(), "65537 entries, at most");
  Builder tensors = Builder::start(kMaxGgufTensors + 1, 0);
  tensors.text.append(24 * (kMaxGgufTensors + 1), '\0');
  check_refused(tensors.done(), "1048577 tensors");
}

TEST_CASE("gguf: general.alignment moves the data") {
  const auto file = GgufFile::open(fixture("quant/align64.gguf"));
  CHECK(file->header().alignment == 64);
  CHECK(file->header().data_begin == 768);
  CHECK(file->find("odd")->begin == 832);
  CHECK(file->find("odd")->shape == std::vector<int64_t>{3, 5});
}

TEST_CASE("gguf: version 2, and tensors of no and of all dimensions") {
  const auto bytes =
      Builder::start(2, 0, 2).tensor("s", {}, 0, 0).tensor("t", {2, 1, 3, 1}, 0, 32).with_data(56);
  const GgufHeader header = parse_gguf("x", bytes);
  CHECK(header.version == 2);
  CHECK(header.tensors[0].bytes == 4);
  CHECK(header.tensors[1].shape == std::vector<int64_t>{1, 3, 1, 2});
}

TEST_CASE("gguf: version 1 and big-endian files are unsupported, by name") {
  CHECK_THROWS_WITH_AS(parse_gguf("x", Builder::start(0, 0, 1).done()),
                       doctest::Contains("version 1"), UnsupportedError);
  CHECK_THROWS_WITH_AS(parse_gguf("x", Builder::start(0, 0, 0x03000000).done()),
                       doctest::Contains("big-endian"), UnsupportedError);
}

TEST_CASE("gguf: violations are named") {
  check_refused(to_bytes("GGML0000"), "magic");
  check_refused(Builder::start(0, 0, 77).done(), "version");
  check_refused(Builder::start(UINT64_MAX, 0).done(), "cannot fit");
  check_refused(Builder::start(0, UINT64_MAX).done(), "cannot fit");
  const auto entry = [] { return Builder::start(0, 1).str("k"); };
  check_refused(entry().put<uint32_t>(13).put<uint64_t>(0).done(), "k.type");
  check_refused(entry().put<uint32_t>(7).put<uint8_t>(2).put<uint64_t>(0).done(), "BOOL is 0 or 1");
  check_refused(entry()
                    .put<uint32_t>(9)
                    .put<uint32_t>(7)
                    .put<uint64_t>(2)
                    .put<uint8_t>(1)
                    .put<uint8_t>(3)
                    .done(),
                "k: a BOOL is 0 or 1, got 3");
  check_refused(entry().put<uint32_t>(10).put<uint32_t>(0).done(), "k: needs 8 bytes");
  check_refused(entry().put<uint32_t>(8).put<uint64_t>(UINT64_MAX).done(), "k: needs");
  check_refused(entry().put<uint32_t>(9).put<uint32_t>(0).put<uint64_t>(UINT64_MAX).done(),
                "k.length");
  Builder nested = entry().put<uint32_t>(9);
  for (int i = 0; i < 1000; ++i) nested.put<uint32_t>(9).put<uint64_t>(1);
  check_refused(nested.done(), "nest deeper");
  check_refused(Builder::start(0, 2)
                    .str("k")
                    .put<uint32_t>(0)
                    .put('a')
                    .str("k")
                    .put<uint32_t>(0)
                    .put('b')
                    .done(),
                "k: occurs twice");
  check_refused(Builder::start(0, 1).str("\xff").put<uint32_t>(0).put('a').done(), "UTF-8");
  check_refused(
      Builder::start(0, 1).str("general.alignment").put<uint32_t>(4).put<uint32_t>(24).done(),
      "power of two");
  check_refused(
      Builder::start(0, 1).str("general.alignment").put<uint32_t>(4).put<uint32_t>(0).done(),
      "power of two");
  const auto one = [](std::vector<uint64_t> ne, uint32_t type, uint64_t offset, size_t data) {
    return Builder::start(1, 0).tensor("t", ne, type, offset).with_data(data);
  };
  check_refused(one({1, 1, 1, 1, 1}, 0, 0, 4), "t.n_dims");
  check_refused(one({4}, 4, 0, 64), "not a known ggml type");
  check_refused(one({31}, 8, 0, 64), "not a multiple of the 32");
  check_refused(one({4}, 0, 8, 64), "multiple of the alignment");
  check_refused(one({4}, 0, 0, 15), "beyond the file");
  check_refused(one({4}, 0, UINT64_MAX - 31, 64), "beyond the file");
  check_refused(one({uint64_t{1} << 62, 4}, 0, 0, 64), "overflows");
  check_refused(one({uint64_t{1} << 62}, 0, 0, 64), "overflows");
  check_refused(one({UINT64_MAX}, 0, 0, 64), "overflows");
  check_refused(one({uint64_t{1} << 32, uint64_t{1} << 32, 0}, 0, 0, 64), "overflows");
  check_refused(one({0, uint64_t{1} << 32, uint64_t{1} << 32}, 0, 0, 64), "overflows");
  check_refused(Builder::start(2, 0).tensor("a", {16}, 0, 0).tensor("b", {4}, 0, 32).with_data(64),
                "b.offset: its data overlap those of a");
  check_refused(Builder::start(2, 0).tensor("a", {4}, 0, 0).tensor("a", {4}, 0, 32).with_data(64),
                "occurs twice");
}
