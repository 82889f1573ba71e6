// Preloaded into a process: reading a file whose path ends in BALORA_FAILING_FILE fails as on a damaged disk.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int fails(int fd) {
  const char* name = getenv("BALORA_FAILING_FILE");
  char link[64], path[4096];
  if (!name) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t length = readlink(link, path, sizeof path - 1);
  const ssize_t wanted = (ssize_t)strlen(name);
  if (length < wanted) return 0;
  path[length] = 0;
  return strcmp(path + length - wanted, name) == 0;
}

#define FAILING(result, name, parameters, arguments)                       \
  result name parameters {                                                 \
    static result(*next) parameters;                                       \
    if (!next) *(void**)&next = dlsym(RTLD_NEXT, #name);                   \
    if (fails(fd)) {                                                       \
      errno = EIO;                                                         \
      return -1;                                                           \
    }                                                                      \
    return next arguments;                                                 \
  }

FAILING(ssize_t, read, (int fd, void* data, size_t size), (fd, data, size))
FAILING(ssize_t, pread, (int fd, void* data, size_t size, off_t at), (fd, data, size, at))
FAILING(ssize_t, pread64, (int fd, void* data, size_t size, off64_t at), (fd, data, size, at))
FAILING(ssize_t, readv, (int fd, const struct iovec* parts, int count), (fd, parts, count))
FAILING(ssize_t, preadv, (int fd, const struct iovec* parts, int count, off_t at), (fd, parts, count, at))
FAILING(ssize_t, preadv64, (int fd, const struct iovec* parts, int count, off64_t at), (fd, parts, count, at))
