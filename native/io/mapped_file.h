// A read-only memory map of a whole file. Readers keep it alive with a shared pointer, so tensors
// may alias its pages.
//
// A map shows what is done to the file: bytes that another process writes in place appear in it,
// and pages behind a new end are gone (guarded_pages.h). So the file stays open, and before
// anything that was computed from its bytes is handed out, refuse_changed() compares it with what
// it was. A file that is replaced by rename is another file: the map keeps the old one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "platform/files.h"
#include "platform/guarded_pages.h"
#include "tensor/storage.h"

namespace balora::io {

// Digests of a part of a file, block by block. They distinguish a change of the bytes from a change
// of the file's attributes, such as its mode or its links.
class PartDigests {
 public:
  explicit PartDigests(std::span<const std::byte> bytes);
  size_t blocks() const { return digests_.size(); }
  // Computes those of blocks [begin, end); several threads may compute different ones.
  void compute(size_t begin, size_t end);
  std::span<const std::byte> bytes() const { return bytes_; }
  bool operator==(const PartDigests& other) const { return digests_ == other.digests_; }

 private:
  std::span<const std::byte> bytes_;
  std::vector<size_t> digests_;
};

using platform::FileFacts;

class MappedFile : public ExternalMemory {
 public:
  // Throws FormatError (missing, not a regular file, empty), NativeError (the system refused the
  // map) or std::system_error (it refused the handler of faults).
  static std::shared_ptr<const MappedFile> open(const std::string& path);

  ~MappedFile() override;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return bytes_; }
  const FileFacts& facts() const { return facts_; }  // on opening

  // Keeps the digests of a part, which were computed before the part was used.
  void remember(PartDigests part) const;

  // Throws FileChangedError where the file was written to or shortened since it was opened, whatever
  // was put back afterwards. Other changes (mode, owner, links, a rename) are none.
  void refuse_changed() const override { check(); }
  // By size, time of modification and lost pages.
  void refuse_rewritten() const override { examine_again(); }

  // The result of `parse(bytes())`, for the reading of a header at once after opening. Throws
  // FileChangedError as above, rather than what `parse` threw on changed bytes.
  template <typename Parse>
  auto parsed(const Parse& parse) const {
    constexpr int kMostAttempts = 10;
    for (int attempt = 1;; ++attempt) {
      try {
        auto result = parse(bytes_);
        // No digest tells yet whether a change of attributes was one of the bytes, too.
        if (check() == Attributes::kSame) return result;
      } catch (...) {
        check();
        throw;
      }
      if (attempt == kMostAttempts) refuse("its attributes change all the time");
    }
  }

 private:
  enum class Attributes { kSame, kChanged };  // since the check before
  MappedFile(std::string path, platform::File file, std::span<const std::byte> bytes,
             const FileFacts& facts);
  Attributes check() const;
  int64_t examine_again() const;  // the time of change
  void refuse_lost() const;
  [[noreturn]] void refuse(const std::string& what) const;

  std::string path_;
  platform::File file_;
  std::span<const std::byte> bytes_;
  std::optional<platform::GuardedPages> pages_;  // until just before the map goes
  FileFacts facts_;

  mutable std::mutex mutex_;
  mutable int64_t changed_;  // the last time of change whose bytes were those of the opening
  mutable std::map<const std::byte*, PartDigests> parts_;  // by their first byte
};

}  // namespace balora::io
