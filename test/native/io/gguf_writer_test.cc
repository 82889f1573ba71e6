// GGUF files as they are written: layout, completeness, and a disk without room.
#include "io/gguf_writer.h"

#include <doctest/doctest.h>

#include <cerrno>

#include "io/fixtures.h"
#include "io/gguf.h"
#include "tensor/errors.h"

using namespace balora;
using namespace balora::io;
using balora::io::test::TempFolder;

namespace {

const GgmlTypeInfo* type(std::string_view name) {
  return find_ggml_type(name);
}

int no_room(platform::File, uint64_t) {
  return ENOSPC;
}

}  // namespace

TEST_CASE("GgufWriter: a file that the reader understands, written in parts and in any order") {
  const TempFolder folder;
  const std::string path = folder.file("a.gguf");
  GgufWriter writer(path, {{}, 0, 64}, {{"one", type("F32"), {3}}, {"two", type("Q8_0"), {2, 32}}});
  const std::vector<std::byte> two(68, std::byte{1}), one(12, std::byte{2});
  writer.write("two", 34, std::span(two).subspan(34));
  writer.write("two", 0, std::span(two).first(34));
  writer.write("one", 0, one);
  CHECK(folder.count() == 1);  // under a temporary name
  writer.commit();
  CHECK(folder.count() == 1);
  // The reader takes 32 as the alignment where the metadata name none, which 64 is a multiple of.
  const auto file = GgufFile::open(path);
  REQUIRE(file->header().tensors.size() == 2);
  for (const auto& [name, data] : {std::pair{"one", one}, std::pair{"two", two}}) {
    const GgufTensor* tensor = file->find(name);
    REQUIRE(tensor);
    CHECK(tensor->begin % 64 == 0);
    const auto bytes = file->bytes(*tensor);
    CHECK(std::equal(bytes.begin(), bytes.end(), data.begin(), data.end()));
  }
}

TEST_CASE("GgufWriter: what does not fit is refused, and data that are missing leave no file") {
  const TempFolder folder;
  const std::string path = folder.file("a.gguf");
  const auto make = [&path](std::vector<GgufSpec> specs, uint64_t alignment = 32) {
    return GgufWriter(path, {{}, 0, alignment}, specs);
  };
  CHECK_THROWS_WITH_AS(
      make({{"x", type("Q4_K"), {2, 128}}}),
      "gguf: the rows of x have 128 elements, which are no whole blocks of 256 (Q4_K)",
      ArgumentError);
  CHECK_THROWS_AS(make({{"x", type("F32"), {}}}), ArgumentError);
  CHECK_THROWS_AS(make({{"x", type("F32"), {1}}, {"x", type("F32"), {1}}}), ArgumentError);
  CHECK_THROWS_AS(make({}, 24), ArgumentError);
  {
    GgufWriter writer = make({{"x", type("F32"), {2}}});
    const std::vector<std::byte> data(8);
    CHECK_THROWS_WITH_AS(writer.write("y", 0, data), "gguf: y was not announced", ArgumentError);
    writer.write("x", 0, std::span(data).first(4));
    CHECK_THROWS_AS(writer.write("x", 4, data), ArgumentError);
    CHECK_THROWS_WITH_AS(writer.commit(), "gguf: 4 of the 8 bytes of x were written",
                         ArgumentError);
  }
  CHECK(folder.count() == 0);
}

TEST_CASE("GgufWriter: a disk without room is named with sizes before anything is written") {
  const TempFolder folder;
  FileCalls calls = kSystemFileCalls;
  calls.reserve_space = no_room;
  const std::vector<GgufSpec> specs{{"x", type("F32"), {1024}}};
  CHECK_THROWS_WITH_AS(GgufWriter(folder.file("a.gguf"), {{}, 0, 32}, specs, calls),
                       doctest::Contains("the file needs"), NativeError);
  CHECK(folder.count() == 0);
}
