#include "io/json_cursor.h"

#include "tensor/errors.h"

namespace balora::io {
namespace {

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

void append_utf8(std::string& out, uint32_t code) {
  const auto put = [&](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xc0 | (code >> 6));
    put(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    put(0xe0 | (code >> 12));
    put(0x80 | ((code >> 6) & 0x3f));
    put(0x80 | (code & 0x3f));
  } else {
    put(0xf0 | (code >> 18));
    put(0x80 | ((code >> 12) & 0x3f));
    put(0x80 | ((code >> 6) & 0x3f));
    put(0x80 | (code & 0x3f));
  }
}

std::string shown(char c) {
  if (c >= 0x20 && c < 0x7f) return concat("'", c, "'");
  return concat("byte ", static_cast<int>(static_cast<unsigned char>(c)));
}

}  // namespace

size_t find_invalid_utf8(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    const auto lead = static_cast<unsigned char>(text[i]);
    if (lead < 0x80) {
      ++i;
      continue;
    }
    const size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || text.size() - i < length) return i;
    uint32_t code = lead & (0xffu >> (length + 1));
    for (size_t k = 1; k < length; ++k) {
      const auto next = static_cast<unsigned char>(text[i + k]);
      if ((next & 0xc0) != 0x80) return i;
      code = (code << 6) | (next & 0x3fu);
    }
    const bool overlong = (length == 3 && code < 0x800) || (length == 4 && code < 0x10000);
    const bool surrogate = code >= 0xd800 && code <= 0xdfff;
    if (overlong || surrogate || code > 0x10ffff) return i;
    i += length;
  }
  return std::string_view::npos;
}

std::string json_quote(std::string_view text) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20) {
      out += "\\u00";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    } else {
      out += c;
    }
  }
  return out + '"';
}

JsonCursor::JsonCursor(std::string path, uint64_t base, std::string what, std::string_view text)
    : path_(std::move(path)), base_(base), what_(std::move(what)), text_(text) {
  const size_t bad = find_invalid_utf8(text_);
  if (bad != std::string_view::npos) fail_at(base_ + bad, "is not valid UTF-8");
}

void JsonCursor::fail_at(uint64_t offset, const std::string& message) const {
  throw FormatError(path_, static_cast<int64_t>(offset), what_ + ": " + message);
}

void JsonCursor::skip_space() {
  while (position_ < text_.size()) {
    const char c = text_[position_];
    if (c != ' ' && c != '\t' && c != '\n' && c != '\r') return;
    ++position_;
  }
}

char JsonCursor::peek() {
  skip_space();
  return position_ < text_.size() ? text_[position_] : '\0';
}

bool JsonCursor::consume(char c) {
  if (peek() != c || position_ == text_.size()) return false;
  ++position_;
  return true;
}

void JsonCursor::expect(char c) {
  if (consume(c)) return;
  if (position_ == text_.size()) fail(concat("the JSON text ends where '", c, "' should follow"));
  fail(concat("expected '", c, "', found ", shown(text_[position_])));
}

uint32_t JsonCursor::hex4() {
  if (text_.size() - position_ < 4) fail("the JSON text ends inside a \\u escape");
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) {
    const char c = text_[position_++];
    const int digit = is_digit(c)            ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
    if (digit < 0) fail("a \\u escape needs four hexadecimal digits");
    value = value * 16 + static_cast<uint32_t>(digit);
  }
  return value;
}

void JsonCursor::escape(std::string& out) {
  if (position_ == text_.size()) fail("the JSON text ends inside a string");
  const char c = text_[position_++];
  switch (c) {
    case '"':
    case '\\':
    case '/':
      out += c;
      return;
    case 'b':
      out += '\b';
      return;
    case 'f':
      out += '\f';
      return;
    case 'n':
      out += '\n';
      return;
    case 'r':
      out += '\r';
      return;
    case 't':
      out += '\t';
      return;
    case 'u':
      break;
    default:
      fail(concat("unknown escape \\", shown(c)));
  }
  uint32_t code = hex4();
  if (code >= 0xdc00 && code <= 0xdfff) fail("a low surrogate without its high surrogate");
  if (code >= 0xd800 && code <= 0xdbff) {
    if (text_.substr(position_, 2) != "\\u") fail("a high surrogate without its low surrogate");
    position_ += 2;
    const uint32_t low = hex4();
    if (low < 0xdc00 || low > 0xdfff) fail("a high surrogate without its low surrogate");
    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
  }
  append_utf8(out, code);
}

std::string JsonCursor::string() {
  expect('"');
  std::string out;
  while (true) {
    if (position_ == text_.size()) fail("the JSON text ends inside a string");
    const char c = text_[position_++];
    if (c == '"') return out;
    if (c == '\\') {
      escape(out);
    } else if (static_cast<unsigned char>(c) < 0x20) {
      fail("a control character inside a string must be escaped");
    } else {
      out += c;
    }
  }
}

uint64_t JsonCursor::unsigned_integer(const char* field) {
  peek();
  const uint64_t start = offset();
  const size_t first = position_;
  uint64_t value = 0;
  while (position_ < text_.size() && is_digit(text_[position_])) {
    const auto digit = static_cast<uint64_t>(text_[position_++] - '0');
    if (value > (INT64_MAX - digit) / 10) fail_at(start, concat(field, " exceeds 2^63 - 1"));
    value = value * 10 + digit;
  }
  const size_t digits = position_ - first;
  const char next = position_ < text_.size() ? text_[position_] : '\0';
  if (digits == 0 || (digits > 1 && text_[first] == '0') || next == '.' || next == 'e' ||
      next == 'E') {
    fail_at(start, concat(field, " must be a non-negative integer"));
  }
  return value;
}

void JsonCursor::skip_number() {
  const size_t first = position_;
  const auto digits = [&] {
    const size_t start = position_;
    while (position_ < text_.size() && is_digit(text_[position_])) ++position_;
    return position_ - start;
  };
  const auto at = [&](char c) { return position_ < text_.size() && text_[position_] == c; };
  if (at('-')) ++position_;
  const bool zero = at('0');
  const size_t whole = digits();
  bool good = whole > 0 && !(zero && whole > 1);
  if (at('.')) {
    ++position_;
    good = good && digits() > 0;
  }
  if (at('e') || at('E')) {
    ++position_;
    if (at('+') || at('-')) ++position_;
    good = good && digits() > 0;
  }
  if (!good) fail_at(base_ + first, "expected a JSON value");
}

void JsonCursor::skip_literal(std::string_view word) {
  if (text_.substr(position_, word.size()) != word) fail("expected a JSON value");
  position_ += word.size();
}

void JsonCursor::skip_value() {
  if (++depth_ > kMaxDepth) fail(concat("nested deeper than ", kMaxDepth, " levels"));
  switch (peek()) {
    case '{':
      object([&](const std::string&, uint64_t) { skip_value(); });
      break;
    case '[':
      array([&] { skip_value(); });
      break;
    case '"':
      string();
      break;
    case 't':
      skip_literal("true");
      break;
    case 'f':
      skip_literal("false");
      break;
    case 'n':
      skip_literal("null");
      break;
    default:
      skip_number();
  }
  --depth_;
}

void JsonCursor::end() {
  peek();
  if (position_ != text_.size()) fail("unexpected text after the JSON value");
}

}  // namespace balora::io
