// A read-only memory map of a whole file. Readers keep it alive with a shared pointer, so tensors
// may alias its pages. A file that another process shortens while it is mapped raises SIGBUS on
// access, as with every memory map: replace files by rename (io/atomic_file.h), never in place.
#pragma once
#include <cstddef>
#include <memory>
#include <span>
#include <string>

namespace balora::io {

class MappedFile {
 public:
  // Throws FormatError (missing, not a regular file, empty) or NativeError (the
  // system refused the map).
  static std::shared_ptr<const MappedFile> open(const std::string& path);

  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  MappedFile(std::string path, std::span<const std::byte> bytes)
      : path_(std::move(path)), bytes_(bytes) {}

  std::string path_;
  std::span<const std::byte> bytes_;
};

}  // namespace balora::io
