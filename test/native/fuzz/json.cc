// libFuzzer's entry for JSON texts and indices of sharded models: whatever the bytes are, they are
// read or refused by name.
#include "fuzz/entry.h"

namespace balora::io::test {

// The first byte chooses the reader.
void consume(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  const auto rest = bytes.subspan(1);
  if (bytes[0] == std::byte{'i'}) {
    consume_index(rest);
  } else {
    consume_json(rest);
  }
}

}  // namespace balora::io::test
