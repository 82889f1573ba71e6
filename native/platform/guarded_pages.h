// Pages of a memory map that cannot be had. Reading a page beyond the end of a file that was
// shortened, or one that its disk cannot give, raises SIGBUS, which would end the process. The
// first GuardedPages therefore installs a handler, for the whole process since signals have no
// other: it replaces the pages by zeros and remembers that they are lost. The reader continues with
// zeros, and checks lost() before its results are used. Every other SIGBUS goes to the handler that
// was there before, or ends the process as usual.
#pragma once
#include <cstddef>
#include <span>

namespace balora::platform {

class GuardedPages {
 public:
  // Guards a map that was just made, before its first access.
  // @throws std::system_error where the system accepts no handler
  explicit GuardedPages(std::span<const std::byte> map);
  ~GuardedPages();  // to be destroyed before the map is
  GuardedPages(const GuardedPages&) = delete;
  GuardedPages& operator=(const GuardedPages&) = delete;

  bool lost() const;  // some page could not be had

 private:
  struct Entry;
  class Table;
  Entry* entry_;
};

}  // namespace balora::platform
