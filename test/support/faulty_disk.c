// A library for LD_PRELOAD that makes the N-th call on some files fail, once or from then on.
//
//   BALORA_FAULT="PATH CALLS N ERRNO LAST"
//
// PATH is how the paths of the files begin: a file, or a folder with all below it; no blanks. CALLS
// is a set of letters (d: reads, w: writes, s: syncs, r: renames, o: opens for writing, t: sizes),
// ERRNO the number of the error, 0 for a write of half of the bytes, and LAST the number of calls
// that fail.
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

static char place[512];
static char calls[16];
static long first, error_number, last;
static atomic_long count;

__attribute__((constructor)) static void set_up(void) {
  const char* text = getenv("BALORA_FAULT");
  const char* format = "%511s %15s %ld %ld %ld";
  if (!text || sscanf(text, format, place, calls, &first, &error_number, &last) != 5) {
    place[0] = '\0';
  }
}

static int is_below(const char* path) {
  return place[0] && path && strncmp(path, place, strlen(place)) == 0;
}

static int is_of_descriptor(int fd) {
  char link[64], path[4096];
  if (!place[0]) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t length = readlink(link, path, sizeof path - 1);
  if (length <= 0) return 0;
  path[length] = '\0';
  return is_below(path);
}

// Whether this call, which is of the kind and concerns the files, fails.
static int fails(char kind) {
  if (!strchr(calls, kind)) return 0;
  const long number = atomic_fetch_add(&count, 1) + 1;
  return number >= first && number < first + last;
}

#define FAIL_WITH(condition, kind) \
  if (error_number && (condition) && fails(kind)) return errno = (int)error_number, -1

// Defines a function of the C library that fails with the error, or else does what it does.
#define FAILING(result, name, kind, condition, parameters, arguments)    \
  result name parameters {                                               \
    __typeof__(&name) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name); \
    FAIL_WITH(condition, kind);                                          \
    return next arguments;                                               \
  }
#define FAILING_READ(name, parameters, arguments) \
  FAILING(ssize_t, name, 'd', is_of_descriptor(fd), parameters, arguments)

FAILING_READ(read, (int fd, void* data, size_t size), (fd, data, size))
FAILING_READ(pread, (int fd, void* data, size_t size, off_t at), (fd, data, size, at))
FAILING_READ(pread64, (int fd, void* data, size_t size, off64_t at), (fd, data, size, at))
FAILING_READ(readv, (int fd, const struct iovec* parts, int size), (fd, parts, size))
FAILING_READ(preadv, (int fd, const struct iovec* parts, int size, off_t at), (fd, parts, size, at))
FAILING_READ(preadv64, (int fd, const struct iovec* parts, int size, off64_t at),
             (fd, parts, size, at))

// Defines a function that writes, which fails with the error, writes less (`halve` makes `size`
// smaller) or does what it does.
#define FAILING_WRITE(name, halve, parameters, arguments)                \
  ssize_t name parameters {                                              \
    __typeof__(&name) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name); \
    if (is_of_descriptor(fd) && fails('w')) {                            \
      if (error_number) return errno = (int)error_number, -1;            \
      size = halve;                                                      \
    }                                                                    \
    return next arguments;                                               \
  }
#define HALF_OF_BYTES (size / 2 + (size == 1))
#define FIRST_PART 1

FAILING_WRITE(write, HALF_OF_BYTES, (int fd, const void* data, size_t size), (fd, data, size))
FAILING_WRITE(pwrite, HALF_OF_BYTES, (int fd, const void* data, size_t size, off_t at),
              (fd, data, size, at))
FAILING_WRITE(pwrite64, HALF_OF_BYTES, (int fd, const void* data, size_t size, off64_t at),
              (fd, data, size, at))
FAILING_WRITE(writev, FIRST_PART, (int fd, const struct iovec* parts, int size), (fd, parts, size))
FAILING_WRITE(pwritev, FIRST_PART, (int fd, const struct iovec* parts, int size, off_t at),
              (fd, parts, size, at))
FAILING_WRITE(pwritev64, FIRST_PART, (int fd, const struct iovec* parts, int size, off64_t at),
              (fd, parts, size, at))

FAILING(int, fsync, 's', is_of_descriptor(fd), (int fd), (fd))
FAILING(int, fdatasync, 's', is_of_descriptor(fd), (int fd), (fd))
FAILING(int, rename, 'r', is_below(from) || is_below(to), (const char* from, const char* to),
        (from, to))
FAILING(int, ftruncate, 't', is_of_descriptor(fd), (int fd, off_t size), (fd, size))
FAILING(int, ftruncate64, 't', is_of_descriptor(fd), (int fd, off64_t size), (fd, size))
FAILING(int, fallocate, 't', is_of_descriptor(fd), (int fd, int mode, off_t from, off_t size),
        (fd, mode, from, size))
FAILING(int, fallocate64, 't', is_of_descriptor(fd), (int fd, int mode, off64_t from, off64_t size),
        (fd, mode, from, size))

int posix_fallocate64(int fd, off64_t from, off64_t size) {
  __typeof__(&posix_fallocate64) next =
      (__typeof__(&posix_fallocate64))dlsym(RTLD_NEXT, "posix_fallocate64");
  if (error_number && is_of_descriptor(fd) && fails('t')) return (int)error_number;
  return next(fd, from, size);
}
int posix_fallocate(int fd, off_t from, off_t size) {
  return posix_fallocate64(fd, from, size);
}

int open64(const char* path, int flags, ...) {
  __typeof__(&open64) next = (__typeof__(&open64))dlsym(RTLD_NEXT, "open64");
  va_list arguments;
  va_start(arguments, flags);
  const int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, int) : 0;
  va_end(arguments);
  FAIL_WITH(is_below(path) && (flags & O_ACCMODE) != O_RDONLY, 'o');
  return next(path, flags, mode);
}
int open(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, int) : 0;
  va_end(arguments);
  return open64(path, flags, mode);
}
