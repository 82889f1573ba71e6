// libFuzzer's entry for GGUF files: whatever the bytes are, they are read or refused by name.
#include "fuzz/entry.h"

namespace balora::io::test {

void consume(std::span<const std::byte> bytes) {
  consume_gguf(bytes);
}

}  // namespace balora::io::test
