#include "platform/files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

namespace balora::platform {
namespace {

constexpr int64_t kSecond = 1'000'000'000;  // nanoseconds

int64_t nanoseconds(const timespec& time) {
  return static_cast<int64_t>(time.tv_sec) * kSecond + time.tv_nsec;
}

// 0, or the error of a call that failed.
int error_of(int result) {
  return result == 0 ? 0 : errno;
}

int opened(int result, File* file) {
  *file = result;
  return result < 0 ? errno : 0;
}

// Whether a change that comes now could get the same time as the last one. Linux stamps files with
// a clock that advances every few milliseconds.
bool changed_in_this_tick(int64_t changed) {
#if defined(CLOCK_REALTIME_COARSE)
  timespec tick{}, now{};
  clock_gettime(CLOCK_REALTIME_COARSE, &tick);
  clock_gettime(CLOCK_REALTIME, &now);
  return changed >= nanoseconds(tick) && changed <= nanoseconds(now);
#else
  (void)changed;
  return false;
#endif
}

}  // namespace

std::string error_text(int error) {
  return std::strerror(error);
}

bool is_full(int error) {
  return error == ENOSPC || error == EDQUOT || error == EFBIG;
}

bool is_taken(int error) {
  return error == EEXIST;
}

int open_to_read(const std::string& path, File* file) {
  return opened(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC), file);
}

int create_file(const std::string& path, File* file) {
  return opened(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666), file);
}

int create_nameless(const std::string& folder, File* file) {
#if defined(O_TMPFILE)
  if (opened(::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600), file) == 0) return 0;
#endif
  std::string path = folder + "/balora-offload-XXXXXX";
  if (const int error = opened(::mkstemp(path.data()), file); error != 0) return error;
  ::fcntl(*file, F_SETFD, FD_CLOEXEC);
  ::unlink(path.c_str());
  return 0;
}

int close_file(File file) {
  return error_of(::close(file));
}

void remove_file(const std::string& path) {
  ::unlink(path.c_str());
}

int rename_over(const std::string& from, const std::string& to) {
  return error_of(::rename(from.c_str(), to.c_str()));
}

void sync_folder(const std::string& folder) {
  const int file = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (file < 0) return;
  ::fsync(file);
  ::close(file);
}

// Linux reports no free space beyond what the user may take.
bool free_bytes_in(const std::string& folder, uint64_t* bytes) {
  struct statvfs info {};
  if (statvfs(folder.c_str(), &info) != 0) return false;
  *bytes = static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
  return true;
}

int64_t process_id() {
  return getpid();
}

int reserve_space(File file, uint64_t bytes) {
#if defined(__linux__)
  return error_of(::fallocate(file, 0, 0, static_cast<off_t>(bytes)));
#else
  (void)file, (void)bytes;
  return EOPNOTSUPP;
#endif
}

int extend_file(File file, uint64_t size, uint64_t room) {
  const auto at = static_cast<off_t>(size), more = static_cast<off_t>(room);
#if defined(__APPLE__)  // which has no posix_fallocate
  fstore_t place{};
  place.fst_flags = F_ALLOCATEALL, place.fst_posmode = F_PEOFPOSMODE, place.fst_length = more;
  if (::fcntl(file, F_PREALLOCATE, &place) != 0) return errno;
  return error_of(::ftruncate(file, at + more));
#else
  int error = 0;
  do {
    error = posix_fallocate(file, at, more);
  } while (error == EINTR);
  return error;
#endif
}

int64_t write_at(File file, std::span<const std::byte> data, uint64_t offset) {
  for (;;) {
    const ssize_t written = ::pwrite(file, data.data(), data.size(), static_cast<off_t>(offset));
    if (written > 0) return written;
    if (written == 0) return -EIO;
    if (errno != EINTR) return -errno;
  }
}

int sync_file(File file) {
  return error_of(::fsync(file));
}

int sync_part(File file, uint64_t offset, uint64_t bytes) {
#if defined(__linux__)
  constexpr unsigned kAll =
      SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
  const int error = error_of(
      sync_file_range(file, static_cast<off64_t>(offset), static_cast<off64_t>(bytes), kAll));
  if (error == 0 || (error != ENOSYS && error != EINVAL && error != ESPIPE)) return error;
#else
  (void)offset, (void)bytes;
#endif
  return sync_file(file);
}

int facts_of(File file, FileFacts* facts) {
  struct stat info {};
  if (fstat(file, &info) != 0) return errno;
#if defined(__APPLE__)
  const timespec &modified = info.st_mtimespec, &changed = info.st_ctimespec;
#else
  const timespec &modified = info.st_mtim, &changed = info.st_ctim;
#endif
  *facts = {S_ISREG(info.st_mode), info.st_ino, static_cast<uint64_t>(info.st_size),
            nanoseconds(modified), nanoseconds(changed)};
  return 0;
}

int settled_facts_of(File file, FileFacts* facts) {
  constexpr int kMostWaits = 20;
  constexpr timespec kWait{0, 1'000'000};
  for (int i = 0; i < kMostWaits; ++i) {
    if (const int error = facts_of(file, facts); error != 0) return error;
    if (!changed_in_this_tick(facts->changed)) break;
    nanosleep(&kWait, nullptr);
  }
  return 0;
}

size_t page_bytes() {
  static const auto bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

std::byte* map_file(File file, uint64_t at, size_t bytes, Sharing sharing, int* error) {
  const int flags = sharing == Sharing::kShared ? MAP_SHARED : MAP_PRIVATE;
  void* const data = mmap(nullptr, bytes, PROT_READ, flags, file, static_cast<off_t>(at));
  if (data != MAP_FAILED) return static_cast<std::byte*>(data);
  *error = errno;
  return nullptr;
}

namespace {

void* start_of(std::span<const std::byte> pages) {
  return const_cast<std::byte*>(pages.data());
}

}  // namespace

void unmap(std::span<const std::byte> map) {
  munmap(start_of(map), map.size());
}

std::span<const std::byte> pages_around(std::span<const std::byte> bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(bytes.data());
  const uintptr_t first = begin - begin % page_bytes();
  const uintptr_t end = begin + bytes.size();
  const uintptr_t last = (end + page_bytes() - 1) / page_bytes() * page_bytes();
  return {bytes.data() - (begin - first), last - first};
}

void begin_reading(std::span<const std::byte> bytes) {
  const std::span<const std::byte> pages = pages_around(bytes);
  madvise(start_of(pages), pages.size(), MADV_WILLNEED);
}

void populate(std::span<const std::byte> pages) {
#if defined(MADV_POPULATE_READ)
  int error = 0;
  do {
    error = error_of(madvise(start_of(pages), pages.size(), MADV_POPULATE_READ));
  } while (error == EAGAIN || error == EINTR);
  if (error != EINVAL) return;  // else a kernel before 5.14
#endif
  for (size_t at = 0; at < pages.size(); at += page_bytes()) {
    static_cast<void>(*static_cast<const volatile std::byte*>(pages.data() + at));
  }
}

void drop_pages(std::span<const std::byte> bytes) {
  const std::span<const std::byte> pages = pages_around(bytes);
#if defined(MADV_COLD)
  // Else the system would take them for pages in frequent use, and keep them rather than the share.
  madvise(start_of(pages), pages.size(), MADV_COLD);
#endif
  madvise(start_of(pages), pages.size(), MADV_DONTNEED);
}

}  // namespace balora::platform
