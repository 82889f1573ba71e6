// A map notices whatever is done to the bytes of its file, survives the loss of its pages, and does
// not mind changes of anything else.
#include "io/mapped_file.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/syscall.h>
#endif

#include <atomic>
#include <fstream>
#include <numeric>
#include <thread>

#include "io/fixtures.h"
#include "tensor/errors.h"

using namespace balora;
using namespace balora::io;
using balora::io::test::TempFolder;

namespace {

constexpr size_t kBytes = 3 << 20;

struct Mapped {
  TempFolder folder;
  std::string path = folder.file("weights");
  std::shared_ptr<const MappedFile> file;

  explicit Mapped(size_t bytes = kBytes) {
    std::ofstream(path) << std::string(bytes, '\1');
    file = MappedFile::open(path);
  }

  // Remembers a part, as the reading of a tensor does.
  void read(size_t begin, size_t end) const {
    PartDigests part(file->bytes().subspan(begin, end - begin));
    part.compute(0, part.blocks());
    file->remember(std::move(part));
  }
  int sum() const {
    const auto bytes = file->bytes();
    return std::accumulate(bytes.begin(), bytes.end(), 0,
                           [](int sum, std::byte b) { return sum + std::to_integer<int>(b); });
  }
  void overwrite(size_t at) const {
    const int fd = ::open(path.c_str(), O_WRONLY);
    REQUIRE(pwrite(fd, "\2", 1, static_cast<off_t>(at)) == 1);
    ::close(fd);
  }
  // Writes a byte and puts the time of modification back, as `rsync -t --inplace` does.
  void overwrite_secretly(size_t at) const {
    struct stat before {};
    REQUIRE(stat(path.c_str(), &before) == 0);
    overwrite(at);
    const timespec times[] = {before.st_atim, before.st_mtim};
    REQUIRE(utimensat(AT_FDCWD, path.c_str(), times, 0) == 0);
  }
  void check_refused(const std::string& what) const {
    CHECK_THROWS_WITH_AS(file->refuse_changed(), doctest::Contains(what.c_str()), FileChangedError);
    CHECK_THROWS_WITH_AS(file->refuse_changed(), doctest::Contains(path.c_str()), FileChangedError);
  }
};

}  // namespace

TEST_CASE("mapped file: bytes that are written in place are refused") {
  const Mapped mapped;
  mapped.file->refuse_changed();
  mapped.overwrite(5);
  mapped.check_refused("its time of modification went from 20");
}

TEST_CASE("mapped file: a write just after the opening of a file that was just written shows") {
  for (int i = 0; i < 20; ++i) {
    const Mapped mapped(10);
    mapped.overwrite(5);
    mapped.check_refused("its time of modification");
  }
}

TEST_CASE("mapped file: bytes that differ under the old time of modification are refused") {
  const Mapped mapped;
  mapped.read(0, 100);
  mapped.read(2 << 20, kBytes);
  mapped.overwrite_secretly(kBytes - 1);
  mapped.check_refused("bytes 2097152 to 3145728 are others");
}

TEST_CASE("mapped file: the check that reads no byte sees the size and the time of modification") {
  const Mapped hidden;
  hidden.read(0, kBytes);
  hidden.overwrite_secretly(5);
  hidden.file->refuse_rewritten();
  hidden.check_refused("bytes 0 to 3145728 are others");
  const auto refusal = [](const Mapped& mapped) -> std::string {
    try {
      mapped.file->refuse_rewritten();
    } catch (const FileChangedError& error) {
      return error.what();
    }
    return "none";
  };
  hidden.overwrite(5);
  CHECK(refusal(hidden).find("its time of modification went from") != std::string::npos);
  const Mapped shortened;
  REQUIRE(truncate(shortened.path.c_str(), 9) == 0);
  CHECK(refusal(shortened).find("its size went from 3145728 to 9 bytes") != std::string::npos);
}

TEST_CASE("mapped file: changes of everything but the bytes are accepted") {
  const Mapped mapped;
  mapped.read(0, kBytes);
  REQUIRE(chmod(mapped.path.c_str(), 0400) == 0);
  mapped.file->refuse_changed();
  REQUIRE(link(mapped.path.c_str(), mapped.folder.file("link").c_str()) == 0);
  mapped.file->refuse_changed();
  const timespec access[] = {{1, 0}, {0, UTIME_OMIT}};
  REQUIRE(utimensat(AT_FDCWD, mapped.path.c_str(), access, 0) == 0);
  mapped.file->refuse_changed();
  REQUIRE(chmod(mapped.path.c_str(), 0600) == 0);
  mapped.overwrite_secretly(9);  // after changes that were accepted, too
  mapped.check_refused("bytes 0 to 3145728");
}

TEST_CASE("mapped file: another file under the name is not this one") {
  const Mapped mapped;
  mapped.read(0, kBytes);
  std::ofstream(mapped.folder.file("new")) << "short";
  REQUIRE(rename(mapped.folder.file("new").c_str(), mapped.path.c_str()) == 0);
  mapped.file->refuse_changed();
  CHECK(mapped.sum() == kBytes);
  REQUIRE(unlink(mapped.path.c_str()) == 0);
  mapped.file->refuse_changed();
}

TEST_CASE("mapped file: pages that are gone read as zeros, on any thread, and are refused") {
  const Mapped mapped, other;
  constexpr off_t kLeft = 100'000;
  REQUIRE(truncate(mapped.path.c_str(), kLeft) == 0);
  std::atomic<int> sums{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back([&] { sums += mapped.sum(); });
  for (std::thread& thread : threads) thread.join();
  CHECK(sums == 4 * kLeft);
  mapped.check_refused("its size went from 3145728 to 100000 bytes");
  CHECK(other.sum() == kBytes);
  other.file->refuse_changed();
}

TEST_CASE("mapped file: pages that were gone for a while are refused") {
  const Mapped mapped;
  struct stat before {};
  REQUIRE(stat(mapped.path.c_str(), &before) == 0);
  REQUIRE(truncate(mapped.path.c_str(), 0) == 0);
  CHECK(mapped.sum() == 0);
  std::ofstream(mapped.path) << std::string(kBytes, '\1');
  const timespec times[] = {before.st_atim, before.st_mtim};
  REQUIRE(utimensat(AT_FDCWD, mapped.path.c_str(), times, 0) == 0);
  mapped.check_refused("some of its pages could not be read");
}

TEST_CASE("mapped file: entries of the guard are used again") {
  for (int i = 0; i < 100; ++i) {
    const Mapped a(10'000), b(10'000);
    REQUIRE(truncate(b.path.c_str(), 0) == 0);
    CHECK(b.sum() == 0);
    CHECK(a.sum() == 10'000);
    CHECK_THROWS_AS(b.file->refuse_changed(), FileChangedError);
    a.file->refuse_changed();
  }
}

TEST_CASE("mapped file: what is parsed is what was there all the time") {
  const Mapped mapped;
  int calls = 0;
  const auto parse = [&](std::span<const std::byte> bytes) {
    if (++calls == 1) chmod(mapped.path.c_str(), 0600);
    return bytes.size();
  };
  CHECK(mapped.file->parsed(parse) == kBytes);
  CHECK(calls == 2);
  const auto restless = [&](std::span<const std::byte>) {
    return chmod(mapped.path.c_str(), 0600);
  };
  CHECK_THROWS_WITH_AS(mapped.file->parsed(restless), doctest::Contains("all the time"),
                       FileChangedError);
  const auto cut = [&](std::span<const std::byte>) -> int {
    REQUIRE(truncate(mapped.path.c_str(), 5) == 0);
    throw FormatError(mapped.path, mapped.sum(), "zeros");
  };
  CHECK_THROWS_AS(mapped.file->parsed(cut), FileChangedError);
}

namespace {

// A handler that was there before the first map, as any program may have one.
constexpr int kNone = -1000;
volatile sig_atomic_t expected = kNone;  // a code that ends the process with kSeen
constexpr int kSeen = 7;

void earlier_handler(int signal, siginfo_t* info, void*) {
  if (info->si_code == expected) _exit(kSeen);
  ::signal(signal, SIG_DFL);
}

const bool installed = [] {
  struct sigaction action {};
  action.sa_sigaction = earlier_handler;
  action.sa_flags = SA_SIGINFO;
  return sigaction(SIGBUS, &action, nullptr) == 0;
}();

// The exit status of a child process that runs `body` and expects the handler to see such a code.
template <typename Body>
int status_of(int code, const Body& body) {
  const pid_t child = fork();
  if (child == 0) {
    expected = code;
    body();
    _exit(0);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// A page that a shortened file no longer has, through a map that nobody guards.
void read_lost_page(const std::string& path) {
  std::ofstream(path) << std::string(10'000, '\1');
  const int fd = ::open(path.c_str(), O_RDONLY);
  const auto* bytes =
      static_cast<const volatile char*>(mmap(nullptr, 10'000, PROT_READ, MAP_PRIVATE, fd, 0));
  if (truncate(path.c_str(), 0) == 0) (void)bytes[9'000];
}

}  // namespace

TEST_CASE("mapped file: an earlier handler of SIGBUS gets what is not of a map") {
  REQUIRE(installed);
  const Mapped mapped;
  const std::string foreign = mapped.folder.file("foreign");
  CHECK(status_of(BUS_ADRERR, [&] { read_lost_page(foreign); }) == kSeen);
  CHECK(status_of(SI_USER, [] { kill(getpid(), SIGBUS); }) == kSeen);
  CHECK(status_of(BUS_ADRERR, [&] {
          if (truncate(mapped.path.c_str(), 0) != 0 || mapped.sum() != 0) _exit(1);
        }) == 0);
}

#ifdef __linux__
namespace {

std::atomic<const void*> watched{nullptr};  // a map whose pages are lost
int status_at_unmapping = -1;

}  // namespace

// Takes the place of the C library's: what a read of the watched map does when that is about to go.
extern "C" int munmap(void* address, size_t bytes) noexcept {
  if (address == watched.load()) {
    status_at_unmapping =
        status_of(BUS_ADRERR, [&] { (void)*static_cast<const volatile char*>(address); });
  }
  return static_cast<int>(syscall(SYS_munmap, address, bytes));
}

TEST_CASE("mapped file: its addresses are no longer guarded when they become free") {
  Mapped mapped;
  REQUIRE(truncate(mapped.path.c_str(), 0) == 0);
  watched = mapped.file->bytes().data();
  mapped.file.reset();
  watched = nullptr;
  CHECK(status_at_unmapping == kSeen);
}
#endif
