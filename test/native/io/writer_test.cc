// Files appear whole or not at all; a disk that fills up is named with sizes and
// leaves nothing behind.
#include <doctest/doctest.h>

#include <cerrno>

#include "io/atomic_file.h"
#include "io/fixtures.h"
#include "io/safetensors.h"
#include "io/safetensors_writer.h"
#include "tensor/errors.h"

using namespace balora;
using namespace balora::io;
using balora::io::test::read_bytes;
using balora::io::test::TempFolder;
using balora::io::test::to_bytes;

namespace {

int no_room(platform::File, uint64_t) {
  return ENOSPC;
}
int cannot_reserve(platform::File, uint64_t) {
  return EOPNOTSUPP;
}
int64_t full_write(platform::File, std::span<const std::byte>, uint64_t) {
  return -ENOSPC;
}
int64_t short_write(platform::File file, std::span<const std::byte> data, uint64_t offset) {
  return platform::write_at(file, data.first(std::min<size_t>(data.size(), 3)), offset);
}
int bad_sync(platform::File) {
  return EIO;
}
int bad_rename(const std::string&, const std::string&) {
  return EACCES;
}

std::span<const std::byte> raw(const auto& values) {
  return std::as_bytes(std::span(values));
}

}  // namespace

TEST_CASE("safetensors writer: what it writes is read back, in the reference's order") {
  TempFolder folder;
  const std::string path = folder.file("model.safetensors");
  const float weight[] = {1, 2, 3, 4, 5, 6};
  const bf16 bias[] = {to_bf16(0.5f)};
  const int64_t step[] = {7};
  SafetensorsWriter writer(path,
                           {{"z.bias", DType::kBF16, {1}},
                            {"w", DType::kF32, {2, 3}},
                            {"a\"\n", DType::kF32, {0, 4}},
                            {"step", DType::kI64, {}}},
                           {{"format", "pt"}, {"note", "tab\t"}});
  CHECK_FALSE(std::filesystem::exists(path));
  writer.write("z.bias", raw(bias));
  writer.write("step", raw(step));
  writer.write("w", raw(weight));
  CHECK_THROWS_WITH_AS(writer.commit(), doctest::Contains("never written"), ArgumentError);
  writer.write("a\"\n", {});
  writer.commit();
  CHECK(folder.count() == 1);

  const auto file = SafetensorsFile::open(path);
  CHECK(file->header().metadata.at("note") == "tab\t");
  std::vector<std::string> names;
  for (const auto& entry : file->header().entries) names.push_back(entry.name);
  CHECK(names == std::vector<std::string>{"step", "a\"\n", "w", "z.bias"});
  CHECK(std::memcmp(file->bytes(*file->find("w")).data(), weight, sizeof weight) == 0);
  CHECK(file->header().entries[0].begin % 8 == 0);
}

TEST_CASE("safetensors writer: misuse is named") {
  TempFolder folder;
  const std::string path = folder.file("m");
  CHECK_THROWS_AS(SafetensorsWriter(path, {{"a", DType::kU8, {1}}, {"a", DType::kU8, {1}}}, {}),
                  ArgumentError);
  CHECK_THROWS_AS(SafetensorsWriter(path, {{"__metadata__", DType::kU8, {1}}}, {}), ArgumentError);
  CHECK_THROWS_AS(SafetensorsWriter(path, {{"\xff", DType::kU8, {1}}}, {}), ArgumentError);
  CHECK_THROWS_AS(SafetensorsWriter(path, {{"a", DType::kF32, {int64_t{1} << 62, 4}}}, {}),
                  ArgumentError);
  {
    SafetensorsWriter writer(path, {{"a", DType::kU8, {2}}}, {});
    CHECK_THROWS_AS(writer.write("b", {}), ArgumentError);
    CHECK_THROWS_AS(writer.write("a", {}), ArgumentError);
  }
  CHECK(folder.count() == 0);
}

TEST_CASE("atomic file: a failure at any step leaves the old file and no temporary one") {
  TempFolder folder;
  const std::string path = folder.file("config.json");
  write_file_atomically(path, "old");
  struct Case {
    FileCalls calls;
    const char* part;
  };
  const FileCalls ok = kSystemFileCalls;
  const Case cases[] = {
      {{no_room, ok.write_at, ok.sync_file, ok.rename_over}, "the file needs 3 bytes"},
      {{cannot_reserve, full_write, ok.sync_file, ok.rename_over}, "are free in"},
      {{ok.reserve_space, ok.write_at, bad_sync, ok.rename_over}, "cannot be synced"},
      {{ok.reserve_space, ok.write_at, ok.sync_file, bad_rename}, "cannot be renamed"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.part);
    CHECK_THROWS_WITH_AS(write_file_atomically(path, "new", c.calls), doctest::Contains(c.part),
                         NativeError);
    CHECK(read_bytes(path) == to_bytes("old"));
    CHECK(folder.count() == 1);
  }
  const FileCalls slow = {ok.reserve_space, short_write, ok.sync_file, ok.rename_over};
  write_file_atomically(path, "longer text", slow);
  CHECK(read_bytes(path) == to_bytes("longer text"));
}

TEST_CASE("atomic file: a folder that is missing, and writes outside the announced size") {
  TempFolder folder;
  CHECK_THROWS_WITH_AS(AtomicFile(folder.file("no/such"), 1),
                       doctest::Contains("cannot be created"), NativeError);
  AtomicFile file(folder.file("x"), 4);
  CHECK_THROWS_AS(file.write(2, to_bytes("abc")), ArgumentError);
  CHECK_THROWS_AS(file.write(UINT64_MAX, to_bytes("abc")), ArgumentError);
  file.abandon();
  CHECK_THROWS_AS(file.commit(), NativeError);
  CHECK(folder.count() == 0);
}
