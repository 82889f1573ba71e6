// Which implementations the tests of this process chose, added to the file in BALORA_TEST_CHOICES:
// lines "FEATURES LIST ENTRY CHOSEN", one for each entry of each list, FEATURES being what of its
// needs this processor lacks (0: nothing, without a limit) and CHOSEN 0 or 1. The check `cpp` adds
// up the processes, one for each limit (cpu_isa_test.cc), and fails for an entry that none chose.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "kernels/cpu/runtime/implementation.h"

namespace balora::test {

class Choices {
 public:
  Choices() {
    on_choice = [](const void* list, size_t index) {
      const std::lock_guard lock(mutex());
      chosen().insert({list, index});
    };
  }
  ~Choices() {
    const char* path = std::getenv("BALORA_TEST_CHOICES");
    if (!path) return;
    std::string lines;
    for (const ImplementationList& list : cpu_implementations()) {
      for (size_t i = 0; i < list.entries.size(); ++i) {
        const auto& [name, needs] = list.entries[i];
        if (std::string_view(name) == "none") continue;  // the processor has nothing of the kind
        const bool was_chosen = chosen().count({list.list, i}) != 0;
        lines += std::to_string(needs & ~platform::cpu().has) + ' ' + list.name + ' ' + name +
                 (was_chosen ? " 1\n" : " 0\n");
      }
    }
    if (std::FILE* file = std::fopen(path, "a")) {  // one write, since processes share the file
      std::fwrite(lines.data(), 1, lines.size(), file);
      std::fclose(file);
    }
  }

 private:
  static std::mutex& mutex() {
    static std::mutex guard;
    return guard;
  }
  static std::set<std::pair<const void*, size_t>>& chosen() {
    static std::set<std::pair<const void*, size_t>> entries;
    return entries;
  }
};

}  // namespace balora::test
