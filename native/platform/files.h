// Files of the system, as the readers and writers of native/io need them. An error is a code of the
// system, 0 for none.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace balora::platform {

using File = int;
constexpr File kNoFile = -1;

std::string error_text(int error);
// Whether an error says that a disk, a quota or a file system has no room.
bool is_full(int error);
// Whether it says that there is such a file.
bool is_taken(int error);

// ---- whole files --------------------------------------------------------------------------------

// A file to be read. One that nobody writes to, as a named pipe, does not stop the caller.
int open_to_read(const std::string& path, File* file);
// A new file to be written.
int create_file(const std::string& path, File* file);
// A file without a name in a folder, to be read and written, which goes with its last handle.
int create_nameless(const std::string& folder, File* file);
int close_file(File file);
void remove_file(const std::string& path);
// Takes the place of what is there under the other name.
int rename_over(const std::string& from, const std::string& to);
// Writes a folder's names to the disk. Some file systems do not: that is no error.
void sync_folder(const std::string& folder);
// Bytes that this user may still write there; false: unknown.
bool free_bytes_in(const std::string& folder, uint64_t* bytes);
int64_t process_id();

// ---- bytes of a file ----------------------------------------------------------------------------

// Places on the disk for a new file's bytes, where the file system can give them.
int reserve_space(File file, uint64_t bytes);
// Makes a file longer, by bytes that have their places on the disk: a page of a file with holes
// could fail to get one when it is written back.
int extend_file(File file, uint64_t size, uint64_t room);
// A number of bytes that may be smaller, or an error below 0.
int64_t write_at(File file, std::span<const std::byte> data, uint64_t offset);
int sync_file(File file);
// The same of a part, whose pages can then be dropped.
int sync_part(File file, uint64_t offset, uint64_t bytes);

struct FileFacts {
  bool is_regular = false;
  uint64_t inode = 0;
  uint64_t size = 0;     // bytes
  int64_t modified = 0;  // mtime in ns since 1970, which a program may set
  int64_t changed = 0;   // ctime in ns since 1970, of the bytes or of any attribute
};
int facts_of(File file, FileFacts* facts);
// The facts, such that every later change gives the file others. This waits for a tick of the
// system's clock for files at most, and only for a file that was written just now.
int settled_facts_of(File file, FileFacts* facts);

// ---- pages of a file ----------------------------------------------------------------------------

size_t page_bytes();
// How others see what they write to the file: kOwn by the system's choice, kShared at once.
enum class Sharing { kOwn, kShared };
// Read-only pages of a file; null, with the error, where they cannot be had.
std::byte* map_file(File file, uint64_t at, size_t bytes, Sharing sharing, int* error);
void unmap(std::span<const std::byte> map);
// Asks for the whole pages around bytes of a map, without waiting.
void begin_reading(std::span<const std::byte> bytes);
// Brings whole pages into this process's tables, reading what the system's cache does not have.
// Those that cannot be had are left out: who reads them finds that out (guarded_pages.h).
void populate(std::span<const std::byte> pages);
// The whole pages around bytes of a map.
std::span<const std::byte> pages_around(std::span<const std::byte> bytes);
// Drops the pages that this process has of them, which then do not count to what it has in memory.
void drop_pages(std::span<const std::byte> bytes);

}  // namespace balora::platform
