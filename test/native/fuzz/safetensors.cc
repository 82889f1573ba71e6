// libFuzzer's entry for safetensors files: whatever the bytes are, they are read or refused by
// name, and nothing else happens.
#include "fuzz/entry.h"

namespace balora::io::test {

void consume(std::span<const std::byte> bytes) {
  consume_safetensors(bytes);
}

}  // namespace balora::io::test
