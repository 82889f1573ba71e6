// A library for LD_PRELOAD that makes the N-th write, read or other call on files below a folder fail, once or from then on.
//
//   BALORA_FAULT="FOLDER CALLS N ERRNO LAST": CALLS is a set of letters (w: writes, s: syncs, r: renames, o: opens for writing, t: sizes),
//   ERRNO the number of the error, 0 for a write of half of the bytes, and LAST the number of calls that fail
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[512];
static char calls[16];
static long first, error_number, last;
static atomic_long count;

__attribute__((constructor)) static void set_up(void) {
  const char* text = getenv("BALORA_FAULT");
  if (!text || sscanf(text, "%511s %15s %ld %ld %ld", folder, calls, &first, &error_number, &last) != 5) folder[0] = '\0';
}

static int below(const char* path) {
  return folder[0] && path && strncmp(path, folder, strlen(folder)) == 0;
}

static int of_descriptor(int fd) {
  char link[64], path[1024];
  if (!folder[0]) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length <= 0) return 0;
  path[length] = '\0';
  return below(path);
}

// Whether this call, which is of the kind and concerns the folder, fails.
static int fails(char kind) {
  if (!strchr(calls, kind)) return 0;
  long number = atomic_fetch_add(&count, 1) + 1;
  return number >= first && number < first + last;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void* data, size_t size) {
  REAL(write);
  if (of_descriptor(fd) && fails('w')) {
    if (error_number) return errno = (int)error_number, -1;
    size = size / 2 + (size == 1);
  }
  return real(fd, data, size);
}

ssize_t pwrite64(int fd, const void* data, size_t size, off64_t at) {
  REAL(pwrite64);
  if (of_descriptor(fd) && fails('w')) {
    if (error_number) return errno = (int)error_number, -1;
    size = size / 2 + (size == 1);
  }
  return real(fd, data, size, at);
}

ssize_t pwrite(int fd, const void* data, size_t size, off_t at) {
  return pwrite64(fd, data, size, at);
}

ssize_t writev(int fd, const struct iovec* parts, int parts_count) {
  REAL(writev);
  if (of_descriptor(fd) && fails('w')) {
    if (error_number) return errno = (int)error_number, -1;
    parts_count = 1;
  }
  return real(fd, parts, parts_count);
}

ssize_t pwritev64(int fd, const struct iovec* parts, int parts_count, off64_t at) {
  REAL(pwritev64);
  if (of_descriptor(fd) && fails('w')) {
    if (error_number) return errno = (int)error_number, -1;
    parts_count = 1;
  }
  return real(fd, parts, parts_count, at);
}

ssize_t pwritev(int fd, const struct iovec* parts, int parts_count, off_t at) {
  return pwritev64(fd, parts, parts_count, at);
}

#define FAIL_WITH(condition, kind) \
  if (error_number && (condition) && fails(kind)) return errno = (int)error_number, -1

int fsync(int fd) {
  REAL(fsync);
  FAIL_WITH(of_descriptor(fd), 's');
  return real(fd);
}

int fdatasync(int fd) {
  REAL(fdatasync);
  FAIL_WITH(of_descriptor(fd), 's');
  return real(fd);
}

int rename(const char* from, const char* to) {
  REAL(rename);
  FAIL_WITH(below(from) || below(to), 'r');
  return real(from, to);
}

int ftruncate64(int fd, off64_t size) {
  REAL(ftruncate64);
  FAIL_WITH(of_descriptor(fd), 't');
  return real(fd, size);
}

int ftruncate(int fd, off_t size) {
  return ftruncate64(fd, size);
}

int fallocate64(int fd, int mode, off64_t from, off64_t size) {
  REAL(fallocate64);
  FAIL_WITH(of_descriptor(fd), 't');
  return real(fd, mode, from, size);
}

int fallocate(int fd, int mode, off_t from, off_t size) {
  return fallocate64(fd, mode, from, size);
}

int posix_fallocate64(int fd, off64_t from, off64_t size) {
  REAL(posix_fallocate64);
  if (error_number && of_descriptor(fd) && fails('t')) return (int)error_number;
  return real(fd, from, size);
}

int posix_fallocate(int fd, off_t from, off_t size) {
  return posix_fallocate64(fd, from, size);
}

int open64(const char* path, int flags, ...) {
  REAL(open64);
  va_list arguments;
  va_start(arguments, flags);
  int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, int) : 0;
  va_end(arguments);
  FAIL_WITH(below(path) && (flags & O_ACCMODE) != O_RDONLY, 'o');
  return real(path, flags, mode);
}

int open(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, int) : 0;
  va_end(arguments);
  return open64(path, flags, mode);
}
