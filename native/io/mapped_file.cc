#include "io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <functional>
#include <string_view>

#include "tensor/errors.h"

namespace balora::io {
namespace {

constexpr size_t kDigestBlock = size_t{1} << 20;  // bytes
constexpr int64_t kSecond = 1'000'000'000;        // nanoseconds

int64_t nanoseconds(const timespec& time) {
  return static_cast<int64_t>(time.tv_sec) * kSecond + time.tv_nsec;
}

FileIdentity identity_of(const struct stat& info) {
#if defined(__APPLE__)
  const timespec &modified = info.st_mtimespec, &changed = info.st_ctimespec;
#else
  const timespec &modified = info.st_mtim, &changed = info.st_ctim;
#endif
  return {info.st_ino, static_cast<uint64_t>(info.st_size), nanoseconds(modified),
          nanoseconds(changed)};
}

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

// Whether a change that comes now could get the same time as the last one. Linux stamps files with
// a clock that advances every few milliseconds.
bool changed_in_this_tick(const struct stat& info) {
#if defined(CLOCK_REALTIME_COARSE)
  timespec tick{}, now{};
  clock_gettime(CLOCK_REALTIME_COARSE, &tick);
  clock_gettime(CLOCK_REALTIME, &now);
  const int64_t changed = identity_of(info).changed;
  return changed >= nanoseconds(tick) && changed <= nanoseconds(now);
#else
  (void)info;
  return false;
#endif
}

// The size and times of a file, such that every later change gives it others. This waits for a tick
// at most, and only for a file that was written just now.
bool examine(int fd, struct stat& info) {
  constexpr int kMostWaits = 20;
  constexpr timespec kWait{0, 1'000'000};
  for (int i = 0; i < kMostWaits; ++i) {
    if (fstat(fd, &info) != 0) return false;
    if (!changed_in_this_tick(info)) break;
    nanosleep(&kWait, nullptr);
  }
  return true;
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
  // Without O_NONBLOCK a named pipe that nobody writes to would stop this thread for good.
  const int fd = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (fd < 0) {
    throw FormatError(path, -1,
                      concat("cannot be opened (", std::strerror(errno),
                             "); check the path and the permission to read it"));
  }
  struct stat info {};
  if (!examine(fd, info) || !S_ISREG(info.st_mode)) {
    ::close(fd);
    throw FormatError(path, -1, "is not a regular file; give the path of a file");
  }
  if (info.st_size == 0) {
    ::close(fd);
    throw FormatError(path, 0, "is empty: the download or copy did not finish");
  }
  const auto size = static_cast<size_t>(info.st_size);
  void* data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  if (data == MAP_FAILED) {
    const int error = errno;
    ::close(fd);
    throw NativeError(concat(path, ": cannot map ", size, " bytes: ", std::strerror(error)),
                      "ERR_IO");
  }
  try {
    return std::shared_ptr<const MappedFile>(
        new MappedFile(path, fd, {static_cast<const std::byte*>(data), size}, identity_of(info)));
  } catch (...) {
    munmap(data, size);
    ::close(fd);
    throw;
  }
}

MappedFile::MappedFile(std::string path, int fd, std::span<const std::byte> bytes,
                       const FileIdentity& identity)
    : path_(std::move(path)),
      fd_(fd),
      bytes_(bytes),
      pages_(bytes),
      identity_(identity),
      changed_(identity.changed) {}

MappedFile::~MappedFile() {
  pages_.reset();  // after munmap(), another map may be at these addresses
  munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
  ::close(fd_);
}

void MappedFile::remember(PartDigests part) const {
  const std::lock_guard lock(mutex_);
  const std::byte* first = part.bytes().data();
  parts_.emplace(first, std::move(part));  // or that of an earlier reading stays
}

int64_t MappedFile::examine_again() const {
  struct stat now {};
  if (fstat(fd_, &now) != 0) {
    refuse(concat("it cannot be examined any more (", std::strerror(errno), ")"));
  }
  const FileIdentity found = identity_of(now);
  if (found.size != identity_.size) {
    refuse(concat("its size went from ", identity_.size, " to ", found.size, " bytes"));
  }
  if (found.modified != identity_.modified) {
    refuse(concat("its time of modification went from ", text_of(identity_.modified), " to ",
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
