#include "io/atomic_file.h"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "tensor/errors.h"

namespace balora::io {
namespace {

int reserve(int fd, int mode, off_t offset, off_t length) {
#if defined(__linux__)
  return ::fallocate(fd, mode, offset, length);
#else
  (void)fd, (void)mode, (void)offset, (void)length;
  errno = EOPNOTSUPP;
  return -1;
#endif
}

std::string folder_of(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// Linux reports no free space beyond what the user may take.
std::string free_bytes(const std::string& folder) {
  struct statvfs info {};
  if (statvfs(folder.c_str(), &info) != 0) return "unknown";
  return std::to_string(static_cast<uint64_t>(info.f_bavail) * info.f_frsize);
}

}  // namespace

const FileCalls kSystemFileCalls = {reserve, ::pwrite, ::fsync, ::rename};

AtomicFile::AtomicFile(std::string path, uint64_t size, const FileCalls& calls)
    : path_(std::move(path)), folder_(folder_of(path_)), size_(size), calls_(calls) {
  static std::atomic<uint32_t> counter{0};
  do {
    temporary_ = concat(path_, ".", getpid(), "-", counter++, ".tmp");
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  } while (fd_ < 0 && errno == EEXIST);
  if (fd_ < 0) {
    const int error = errno;
    temporary_.clear();
    fail("cannot be created", error);
  }
  if (size_ > 0 && calls_.fallocate(fd_, 0, 0, static_cast<off_t>(size_)) != 0 &&
      (errno == ENOSPC || errno == EFBIG || errno == EDQUOT)) {
    fail("cannot be written", errno);
  }
}

AtomicFile::~AtomicFile() {
  abandon();
}

void AtomicFile::abandon() noexcept {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
  temporary_.clear();
}

void AtomicFile::fail(const char* action, int error) {
  std::string message = concat(path_, ": ", action, ": ", std::strerror(error));
  const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
  if (full) {
    message += concat("; the file needs ", size_, " bytes, ", free_bytes(folder_), " are free in ",
                      folder_);
  }
  abandon();
  throw NativeError(message, full ? "ERR_DISK_FULL" : "ERR_IO");
}

void AtomicFile::write(uint64_t offset, std::span<const std::byte> data) {
  if (fd_ < 0) throw NativeError(path_ + ": this writer has ended");
  if (offset > size_ || data.size() > size_ - offset) {
    throw ArgumentError(concat(path_, ": a write of ", data.size(), " bytes at ", offset,
                               " leaves the file's ", size_));
  }
  while (!data.empty()) {
    const ssize_t written =
        calls_.pwrite(fd_, data.data(), data.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) fail("cannot be written", written < 0 ? errno : EIO);
    offset += static_cast<uint64_t>(written);
    data = data.subspan(static_cast<size_t>(written));
  }
}

void AtomicFile::commit() {
  if (fd_ < 0) throw NativeError(path_ + ": this writer has ended");
  if (calls_.fsync(fd_) != 0) fail("cannot be synced", errno);
  const int closed = ::close(fd_);
  fd_ = -1;
  if (closed != 0) fail("cannot be closed", errno);
  if (calls_.rename(temporary_.c_str(), path_.c_str()) != 0) fail("cannot be renamed", errno);
  temporary_.clear();
  // The rename itself must survive a power cut. Some file systems refuse to sync a folder; that is
  // not an error.
  const int folder = ::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder >= 0) {
    calls_.fsync(folder);
    ::close(folder);
  }
}

void write_file_atomically(const std::string& path, std::string_view text, const FileCalls& calls) {
  AtomicFile file(path, text.size(), calls);
  file.write(0, std::as_bytes(std::span(text.data(), text.size())));
  file.commit();
}

}  // namespace balora::io
