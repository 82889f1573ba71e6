#include "platform/guarded_pages.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <mutex>
#include <system_error>

namespace balora::platform {

// A range of addresses as the handler reads it, on any thread and without a lock. An entry changes
// only while nobody reads its map: one that changes under the handler's eyes is of another map.
struct GuardedPages::Entry {
  std::atomic<uint32_t> version{0};  // odd while the range is being written
  std::atomic<uintptr_t> begin{0};
  std::atomic<uintptr_t> end{0};  // 0: free
  std::atomic<bool> lost{false};
  Entry* next = nullptr;

  void set(uintptr_t new_begin, uintptr_t new_end) {
    ++version;
    begin = new_begin;
    end = new_end;
    ++version;
  }
};

// The maps of the process. Entries are used again and never freed, since the handler may be reading
// them; there are as many as maps at one time.
class GuardedPages::Table {
 public:
  static Entry* add(uintptr_t begin, uintptr_t end) {
    std::lock_guard lock(mutex_);
    install();
    Entry* entry = first_;
    while (entry && entry->end != 0) entry = entry->next;
    if (!entry) {
      entry = new Entry;
      entry->next = first_;
      first_ = entry;
    }
    entry->lost = false;
    entry->set(begin, end);
    return entry;
  }

  static void remove(Entry* entry) {
    std::lock_guard lock(mutex_);
    entry->set(0, 0);
  }

 private:
  static void install() {
    if (installed_) return;
    page_bytes_ = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    struct sigaction action {};
    action.sa_sigaction = &Table::handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGBUS, nullptr, &before_) != 0 || sigaction(SIGBUS, &action, nullptr) != 0) {
      throw std::system_error(errno, std::generic_category(), "cannot install a handler of SIGBUS");
    }
    installed_ = true;
  }

  // Only calls that are safe in a handler (mmap() is a bare system call).
  static void handle(int signal, siginfo_t* info, void* context) {
    const int saved = errno;
    const bool replaced = info->si_code > 0 && replace(static_cast<std::byte*>(info->si_addr));
    errno = saved;
    if (!replaced) pass_on(signal, info, context);
  }

  // Zeros from the page of `fault` to the end of its map: what follows is mostly lost as well.
  static bool replace(std::byte* fault) {
    const auto address = reinterpret_cast<uintptr_t>(fault);
    for (Entry* entry = first_; entry; entry = entry->next) {
      const uint32_t version = entry->version;
      const uintptr_t begin = entry->begin, end = entry->end;
      if (version % 2 != 0 || version != entry->version) continue;
      if (address < begin || address >= end) continue;
      const uintptr_t before = address % page_bytes_;  // of the fault's page
      entry->lost = true;
      return mmap(fault - before, end - address + before, PROT_READ,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != MAP_FAILED;
    }
    return false;
  }

  static void pass_on(int signal, siginfo_t* info, void* context) {
    const bool sent = info->si_code <= 0;  // by kill() and the like, not by an access
    if (before_.sa_handler == SIG_IGN && sent) return;
    if (before_.sa_handler != SIG_DFL && before_.sa_handler != SIG_IGN) {
      if (before_.sa_flags & SA_SIGINFO) return before_.sa_sigaction(signal, info, context);
      return before_.sa_handler(signal);
    }
    // The process ends when the access is repeated, or when the signal that is sent once more is
    // delivered, after this handler.
    struct sigaction standard {};
    standard.sa_handler = SIG_DFL;
    sigaction(signal, &standard, nullptr);
    if (sent) raise(signal);
  }

  static inline std::mutex mutex_;
  static inline std::atomic<Entry*> first_{nullptr};
  static inline bool installed_ = false;
  static inline uintptr_t page_bytes_ = 0;
  static inline struct sigaction before_ {};
};

GuardedPages::GuardedPages(std::span<const std::byte> map) {
  const auto begin = reinterpret_cast<uintptr_t>(map.data());
  entry_ = Table::add(begin, begin + map.size());
}

GuardedPages::~GuardedPages() {
  Table::remove(entry_);
}

bool GuardedPages::lost() const {
  return entry_->lost;
}

}  // namespace balora::platform
