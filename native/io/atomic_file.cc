#include "io/atomic_file.h"

#include <atomic>
#include <string_view>

#include "tensor/errors.h"

namespace balora::io {
namespace {

std::string folder_of(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

std::string free_bytes(const std::string& folder) {
  uint64_t bytes = 0;
  return platform::free_bytes_in(folder, &bytes) ? std::to_string(bytes) : "unknown";
}

}  // namespace

const FileCalls kSystemFileCalls = {platform::reserve_space, platform::write_at,
                                    platform::sync_file, platform::rename_over};

AtomicFile::AtomicFile(std::string path, uint64_t size, const FileCalls& calls)
    : path_(std::move(path)), folder_(folder_of(path_)), size_(size), calls_(calls) {
  static std::atomic<uint32_t> counter{0};
  int error = 0;
  do {
    temporary_ = concat(path_, ".", platform::process_id(), "-", counter++, ".tmp");
    error = platform::create_file(temporary_, &file_);
  } while (platform::is_taken(error));
  if (error != 0) {
    temporary_.clear();
    fail("cannot be created", error);
  }
  if (size_ == 0) return;
  error = calls_.reserve_space(file_, size_);
  if (platform::is_full(error)) fail("cannot be written", error);
}

AtomicFile::~AtomicFile() {
  abandon();
}

void AtomicFile::abandon() noexcept {
  if (file_ != platform::kNoFile) platform::close_file(file_);
  file_ = platform::kNoFile;
  if (!temporary_.empty()) platform::remove_file(temporary_);
  temporary_.clear();
}

void AtomicFile::fail(const char* action, int error) {
  std::string message = concat(path_, ": ", action, ": ", platform::error_text(error));
  const bool full = platform::is_full(error);
  if (full) {
    message += concat("; the file needs ", size_, " bytes, ", free_bytes(folder_), " are free in ",
                      folder_);
  }
  abandon();
  throw NativeError(message, full ? "ERR_DISK_FULL" : "ERR_IO");
}

void AtomicFile::write(uint64_t offset, std::span<const std::byte> data) {
  if (file_ == platform::kNoFile) throw NativeError(path_ + ": this writer has ended");
  if (offset > size_ || data.size() > size_ - offset) {
    throw ArgumentError(concat(path_, ": a write of ", data.size(), " bytes at ", offset,
                               " leaves the file's ", size_));
  }
  while (!data.empty()) {
    const int64_t written = calls_.write_at(file_, data, offset);
    if (written < 0) fail("cannot be written", static_cast<int>(-written));
    offset += static_cast<uint64_t>(written);
    data = data.subspan(static_cast<size_t>(written));
  }
}

void AtomicFile::commit() {
  if (file_ == platform::kNoFile) throw NativeError(path_ + ": this writer has ended");
  if (const int error = calls_.sync_file(file_); error != 0) fail("cannot be synced", error);
  const int closed = platform::close_file(file_);
  file_ = platform::kNoFile;
  if (closed != 0) fail("cannot be closed", closed);
  if (const int error = calls_.rename_over(temporary_, path_); error != 0) {
    fail("cannot be renamed", error);
  }
  temporary_.clear();
  platform::sync_folder(folder_);  // the rename itself must survive a power cut
}

void write_file_atomically(const std::string& path, std::string_view text, const FileCalls& calls) {
  AtomicFile file(path, text.size(), calls);
  file.write(0, std::as_bytes(std::span(text.data(), text.size())));
  file.commit();
}

}  // namespace balora::io
