// A strict JSON pull parser over bytes in memory, for headers whose byte offsets must appear in
// errors and whose duplicate keys must be seen (a DOM would hide both). RFC 8259; the text must be
// valid UTF-8; nesting is capped.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace balora::io {

class JsonCursor {
 public:
  // `base` is the file offset of text[0]; `what` names the text in errors ("header", "index").
  // Throws FormatError when the text is not UTF-8.
  JsonCursor(std::string path, uint64_t base, std::string what, std::string_view text);

  char peek();           // the next character that is not white space; '\0' at the end
  void expect(char c);   // consumes it or throws
  bool consume(char c);  // consumes it if it is next
  std::string string();
  uint64_t unsigned_integer(
      const char* field);  // digits only: no sign, fraction, exponent or leading zero
  void skip_value();
  void end();  // only white space may follow

  // Calls member(key, offset of the key) for each member of an object, with the
  // cursor at its value.
  template <typename F>
  void object(F&& member) {
    expect('{');
    if (consume('}')) return;
    do {
      peek();
      const uint64_t at = offset();
      const std::string key = string();
      expect(':');
      member(key, at);
    } while (consume(','));
    expect('}');
  }

  template <typename F>
  void array(F&& element) {
    expect('[');
    if (consume(']')) return;
    do element();
    while (consume(','));
    expect(']');
  }

  uint64_t offset() const { return base_ + position_; }
  [[noreturn]] void fail(const std::string& message) const { fail_at(offset(), message); }
  [[noreturn]] void fail_at(uint64_t offset, const std::string& message) const;

 private:
  void skip_space();
  void skip_number();
  void skip_literal(std::string_view word);
  uint32_t hex4();
  void escape(std::string& out);

  static constexpr int kMaxDepth = 64;

  std::string path_;
  uint64_t base_;
  std::string what_;
  std::string_view text_;
  size_t position_ = 0;
  int depth_ = 0;
};

// Offset of the first byte that is not part of valid UTF-8, or npos.
size_t find_invalid_utf8(std::string_view text);

// The text as a JSON string literal, quotes included.
std::string json_quote(std::string_view text);

}  // namespace balora::io
