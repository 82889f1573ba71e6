// A file that appears whole or not at all: written to a temporary file in the same folder, synced,
// renamed over the target, and the folder synced. An error or a destroyed writer removes the
// temporary file and leaves the target as it was. A full disk is found before the first byte where
// the file system can reserve space, and named with sizes.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "platform/files.h"

namespace balora::io {

// The system calls that can fail half-way, so that tests can make them fail.
struct FileCalls {
  decltype(&platform::reserve_space) reserve_space;
  decltype(&platform::write_at) write_at;
  decltype(&platform::sync_file) sync_file;
  decltype(&platform::rename_over) rename_over;
};
extern const FileCalls kSystemFileCalls;

class AtomicFile {
 public:
  // `size` is the final size in bytes. Throws NativeError.
  AtomicFile(std::string path, uint64_t size, const FileCalls& calls = kSystemFileCalls);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  // Any order, each byte once. A failure removes the temporary file and ends this writer.
  void write(uint64_t offset, std::span<const std::byte> data);
  void commit();
  void abandon() noexcept;  // idempotent

  const std::string& path() const { return path_; }
  const std::string& temporary_path() const { return temporary_; }

 private:
  [[noreturn]] void fail(const char* action, int error);

  std::string path_;
  std::string folder_;
  std::string temporary_;
  uint64_t size_;
  const FileCalls& calls_;
  platform::File file_ = platform::kNoFile;
};

// The whole of a small file at once.
void write_file_atomically(const std::string& path, std::string_view text,
                           const FileCalls& calls = kSystemFileCalls);

}  // namespace balora::io
