// The check of one access, and the words for what is wrong with it.
#include "checks.h"

#include <dlfcn.h>
#include <link.h>

#include <cstdio>
#include <cstring>

#include "arena.h"
#include "block.h"

namespace emulator {
namespace {

const char* verb(Access how) {
  switch (how) {
    case Access::kRead:
      return "reads";
    case Access::kWrite:
      return "writes";
    case Access::kAtomic:
      return "changes atomically";
    case Access::kCopyBegin:
      return "lets cp_async copy to";
    case Access::kCopyEnd:
      return "waits for its cp_async to";
  }
  return "";
}

std::string count(size_t bytes) {
  return std::to_string(bytes) + (bytes == 1 ? " byte" : " bytes");
}

// The place in the source, where the machine has a tool that knows: only asked for an error.
std::string source_of(const void* code) {
  Dl_info info{};
  if (!code || !dladdr(code, &info) || !info.dli_fname) return "";
  const auto offset = static_cast<const char*>(code) - static_cast<const char*>(info.dli_fbase) - 1;
  char command[1024];
  std::snprintf(command, sizeof command, "addr2line -e '%s' 0x%lx 2>/dev/null", info.dli_fname,
                static_cast<unsigned long>(offset));
  FILE* pipe = popen(command, "r");
  if (!pipe) return "";
  char line[512] = "";
  const char* got = std::fgets(line, sizeof line, pipe);
  pclose(pipe);
  std::string text = got ? line : "";
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  if (text.empty() || text[0] == '?') return "";
  if (const size_t extra = text.find(" ("); extra != std::string::npos) text.resize(extra);
  return " [" + text.substr(text.rfind('/') + 1) + "]";
}

std::string block_of_epoch(const Block& block, uint32_t epoch) {
  uint3 at = block.at;
  for (const auto& [first, index] : block.started) {
    if (first <= epoch) at = index;
  }
  return text_of(at);
}

std::string place(const void* at) {
  const size_t offset = shared_room.offset(at);
  if (offset < SharedRoom::kBytes) return describe_shared(*current, offset);
  return Arena::get().describe(at);
}

// Constants of the plug-in: what its kernels may read beside their arguments.
bool is_constant(const char* at, size_t bytes) {
  static const char *latest_begin = nullptr, *latest_end = nullptr;
  if (at >= latest_begin && at + bytes <= latest_end) return true;
  struct Search {
    const char *at, *end;
    bool found;
  } search{at, at + bytes, false};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        auto* wanted = static_cast<Search*>(data);
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const ElfW(Phdr)& part = info->dlpi_phdr[i];
          const bool constant =
              part.p_type == PT_GNU_RELRO || (part.p_type == PT_LOAD && !(part.p_flags & PF_W));
          const char* begin = reinterpret_cast<const char*>(info->dlpi_addr + part.p_vaddr);
          if (!constant || wanted->at < begin || wanted->end > begin + part.p_memsz) continue;
          wanted->found = true;
          latest_begin = begin;
          latest_end = begin + part.p_memsz;
        }
        return 0;
      },
      &search);
  return search.found;
}

}  // namespace

std::string text_of(uint3 at) {
  return "(" + std::to_string(at.x) + "," + std::to_string(at.y) + "," + std::to_string(at.z) + ")";
}
std::string text_of(Site site) {
  if (!site.file) return "";
  const char* slash = std::strrchr(site.file, '/');
  return std::string(" [") + (slash ? slash + 1 : site.file) + ":" + std::to_string(site.line) +
         "]";
}
std::string text_of_thread(const Block& block, uint32_t thread) {
  const dim3 dims = block.launch->dims;
  return text_of(uint3{thread % dims.x, thread / dims.x % dims.y, thread / (dims.x * dims.y)});
}

void fail(const std::string& what, const void* code) {
  running = nullptr;
  const Block& block = *current;
  leave_for_good(std::string("kernel ") + block.launch->name + ", block " + text_of(block.at) +
                 ", thread " + text_of_thread(block, block.running) + " " + what + source_of(code));
}

void fail_alignment(const void* at, size_t alignment, Site site, const void* code) {
  running = nullptr;
  char address[32];
  std::snprintf(address, sizeof address, "%p", at);
  const std::string text =
      std::string("accesses ") + address + " as if it were a multiple of " + count(alignment);
  if (site.file) fail(text + text_of(site));
  fail(text, code);
}

void fail_access(const Running& self, const Finding& finding, const char* base, size_t bytes,
                 Access how, const void* code) {
  running = nullptr;
  const Record other = finding.other;
  const void* at = static_cast<const char*>(base) + finding.offset;
  std::string text = std::string(verb(how)) + " " + count(bytes) + " " + place(at);
  const std::string thread = "thread " + text_of_thread(*current, thread_of(other));
  switch (finding.trouble) {
    case Trouble::kUnwritten:
      text += " of shared memory that no thread of the block has written";
      break;
    case Trouble::kUnderWay:
      text += " while a cp_async of " + thread +
              " to it is under way (no cp_async_wait, or no barrier, between)";
      break;
    default: {
      const bool wrote = finding.trouble == Trouble::kRaceWithWrite;
      const char* did = !wrote ? "reads" : other & kAtomicFlag ? "changes atomically" : "writes";
      text += " that " + thread;
      if (epoch_of(other) < self.block_first) {
        text += " of block " + block_of_epoch(*current, epoch_of(other)) + " " + did +
                " in the same launch";
      } else {
        text += std::string(" ") + did + " too, with no barrier between";
      }
    }
  }
  fail(text, code);
}

void check_elsewhere(const char* at, size_t bytes, Access how, const void* code) {
  const Arena& arena = Arena::get();
  const Launch& launch = *current->launch;
  const bool reads = how == Access::kRead;
  const auto in_closure = static_cast<size_t>(at - static_cast<const char*>(launch.closure.get()));
  if (reads && in_closure < launch.closure_bytes) return;
  if (arena.holds(at)) {
    const auto offset = static_cast<size_t>(at - arena.part(Arena::kPinned));
    if (offset < Arena::kPart && arena.valid(at, bytes)) return;
    running = nullptr;
    fail(std::string(verb(how)) + " " + count(bytes) + " " + arena.describe(at), code);
  }
  if (reads && is_constant(at, bytes)) return;
  running = nullptr;
  if (const size_t offset = shared_room.offset(at); offset < SharedRoom::kBytes) {
    fail(std::string(verb(how)) + " " + count(bytes) + " " + describe_shared(*current, offset),
         code);
  }
  for (unsigned i = 0; i < current->threads; ++i) {
    const auto inside = static_cast<size_t>(at - current->lanes[i]->fibre.stack());
    if (inside < Fibre::kStackBytes) {
      fail(std::string(verb(how)) + " " + count(bytes) + " of a local variable of thread " +
               text_of_thread(*current, i),
           code);
    }
  }
  fail(std::string(verb(how)) + " " + count(bytes) + " of the host's memory", code);
}

void check_range(Running& self, const char* at, size_t bytes, Access how, const void* code) {
  if (static_cast<size_t>(at - self.stack) >= Fibre::kStackBytes && bytes > 0) {
    check_memory(self, at, bytes, how, code);
  }
}

void check_access(const void* at, size_t bytes, size_t alignment, bool write) {
  Running* const self = running;
  if (!self) return;
  const void* code = __builtin_return_address(0);
  if (reinterpret_cast<uintptr_t>(at) % alignment != 0) fail_alignment(at, alignment, {}, code);
  check_range(*self, static_cast<const char*>(at), bytes, write ? Access::kWrite : Access::kRead,
              code);
}

void note_atomic(const void* at, size_t bytes) {
  Running* const self = running;
  if (!self) return;
  const void* code = __builtin_return_address(0);
  if (reinterpret_cast<uintptr_t>(at) % bytes != 0) fail_alignment(at, bytes, {}, code);
  check_range(*self, static_cast<const char*>(at), bytes, Access::kAtomic, code);
}

}  // namespace emulator
