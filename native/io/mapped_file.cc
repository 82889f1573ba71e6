#include "io/mapped_file.h"

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <functional>
#include <string_view>

#include "tensor/errors.h"

namespace balora::io {
namespace {

constexpr size_t kDigestBlock = size_t{1} << 20;  // bytes
constexpr int64_t kSecond = 1'000'000'000;        // nanoseconds

// "2026-01-31T12:00:00.123456789Z"
std::string text_of(int64_t time) {
  const auto seconds = static_cast<time_t>(time / kSecond);
  tm parts{};
  gmtime_r(&seconds, &parts);
  char text[64];
  const size_t length = std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
  std::snprintf(text + length, sizeof text - length, ".%09dZ", static_cast<int>(time % kSecond));
  return text;
}

}  // namespace

PartDigests::PartDigests(std::span<const std::byte> bytes)
    : bytes_(bytes), digests_((bytes.size() + kDigestBlock - 1) / kDigestBlock) {}

void PartDigests::compute(size_t begin, size_t end) {
  for (size_t i = begin; i < end; ++i) {
    const auto block = bytes_.subspan(i * kDigestBlock)
                           .first(std::min(kDigestBlock, bytes_.size() - i * kDigestBlock));
    digests_[i] =
        std::hash<std::string_view>{}({reinterpret_cast<const char*>(block.data()), block.size()});
  }
}

std::shared_ptr<const MappedFile> MappedFile::open(const std::string& path) {
  platform::File file = platform::kNoFile;
  if (const int error = platform::open_to_read(path, &file); error != 0) {
    throw FormatError(path, -1,
                      concat("cannot be opened (", platform::error_text(error),
                             "); check the path and the permission to read it"));
  }
  FileFacts facts;
  if (platform::settled_facts_of(file, &facts) != 0 || !facts.is_regular) {
    platform::close_file(file);
    throw FormatError(path, -1, "is not a regular file; give the path of a file");
  }
  if (facts.size == 0) {
    platform::close_file(file);
    throw FormatError(path, 0, "is empty: the download or copy did not finish");
  }
  const auto size = static_cast<size_t>(facts.size);
  int error = 0;
  const std::byte* const data = platform::map_file(file, 0, size, platform::Sharing::kOwn, &error);
  if (!data) {
    platform::close_file(file);
    throw NativeError(concat(path, ": cannot map ", size, " bytes: ", platform::error_text(error)),
                      "ERR_IO");
  }
  try {
    return std::shared_ptr<const MappedFile>(new MappedFile(path, file, {data, size}, facts));
  } catch (...) {
    platform::unmap({data, size});
    platform::close_file(file);
    throw;
  }
}

MappedFile::MappedFile(std::string path, platform::File file, std::span<const std::byte> bytes,
                       const FileFacts& facts)
    : path_(std::move(path)),
      file_(file),
      bytes_(bytes),
      pages_(bytes),
      facts_(facts),
      changed_(facts.changed) {}

MappedFile::~MappedFile() {
  pages_.reset();  // later another map may be at these addresses
  platform::unmap(bytes_);
  platform::close_file(file_);
}

void MappedFile::remember(PartDigests part) const {
  const std::lock_guard lock(mutex_);
  const std::byte* first = part.bytes().data();
  parts_.emplace(first, std::move(part));  // or that of an earlier reading stays
}

int64_t MappedFile::examine_again() const {
  FileFacts found;
  if (const int error = platform::facts_of(file_, &found); error != 0) {
    refuse(concat("it cannot be examined any more (", platform::error_text(error), ")"));
  }
  if (found.size != facts_.size) {
    refuse(concat("its size went from ", facts_.size, " to ", found.size, " bytes"));
  }
  if (found.modified != facts_.modified) {
    refuse(concat("its time of modification went from ", text_of(facts_.modified), " to ",
                  text_of(found.modified)));
  }
  refuse_lost();
  return found.changed;
}

void MappedFile::refuse_lost() const {
  if (!pages_->lost()) return;
  refuse("some of its pages could not be read: it was shorter for a while, or its disk failed");
}

MappedFile::Attributes MappedFile::check() const {
  const std::lock_guard lock(mutex_);
  const int64_t changed = examine_again();
  if (changed == changed_) return Attributes::kSame;
  for (const auto& [first, part] : parts_) {
    PartDigests again(part.bytes());
    again.compute(0, again.blocks());
    refuse_lost();
    if (again == part) continue;
    refuse(concat("bytes ", first - bytes_.data(), " to ",
                  first - bytes_.data() + static_cast<ptrdiff_t>(part.bytes().size()),
                  " are others, under the same time of modification"));
  }
  changed_ = changed;
  return Attributes::kChanged;
}

void MappedFile::refuse(const std::string& what) const {
  throw FileChangedError(path_, what);
}

}  // namespace balora::io
